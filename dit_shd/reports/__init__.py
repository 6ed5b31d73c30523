"""Values drawn as pages, tables and figures. Knows neither the trainer nor the command line."""
