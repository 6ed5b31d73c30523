"""Diffusion processes, the call of a model, guidance, solvers, sampling."""
