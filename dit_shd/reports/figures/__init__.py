"""Figures by matplotlib, in light and dark."""
