"""What runs on a GPU, in Triton; backends/triton.py launches it."""
