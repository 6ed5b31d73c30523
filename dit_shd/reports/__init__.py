"""Pages, tables and figures of results; independent of the trainer and the command line."""
