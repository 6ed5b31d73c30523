"""Diffusion processes, how a model is asked, guidance, solvers, sampling."""
