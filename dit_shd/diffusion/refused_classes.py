"""Transformers of diffusers that no adapter is for, with the reason."""

REFUSED = {
    "CogView4Transformer2DModel": "its pipeline pads prompts to the longest of a batch and gives no mask, so that what "
    "a prompt's embeddings are, and what the model makes of them, depends on the other prompts",
}
"""Classes that cannot be asked so that a sample depends on its own prompt alone, and why."""
