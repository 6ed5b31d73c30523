"""Initialising a student with weights of its teacher."""
