"""Model families, checkpoints of dit_shd and of others, and the provenance of weights."""
