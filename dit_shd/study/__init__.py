"""Grids of runs: cells as ordinary run folders, rows of results, and what they show over seeds."""
