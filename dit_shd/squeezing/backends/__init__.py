"""Ways to compute the divergence, one file each; autotune.py chooses between them."""
