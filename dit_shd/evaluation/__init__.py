"""Figures of sets of images. Numbers only: pages are made by reports."""
