"""Attention on a GPU, in Triton: what a program reads and computes of a capture, and attention with its gradients."""
