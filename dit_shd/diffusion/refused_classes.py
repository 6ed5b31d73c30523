"""Transformers of diffusers that no adapter is for, with the reason."""

MIXES = (
    "its pipeline pads prompts to the longest of a batch and gives no mask, so that what a prompt's embeddings are, "
    "and what the model makes of them, depends on the other prompts"
)
REFUSED = {"CogView4Transformer2DModel": MIXES, "Kandinsky5Transformer3DModel": MIXES}
"""Classes that cannot be asked so that a sample depends on its own prompt alone, and why."""
