"""Analysis of attention, as numbers."""
