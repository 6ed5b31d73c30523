"""What everything stands on: errors, configs, plug-ins, randomness, files, processes. Knows no tensor of ours."""
