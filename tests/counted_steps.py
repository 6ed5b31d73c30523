"""Steps whose operations are counted, and small models for them."""

import torch

from dit_shd.models.families.mdt import MDTv2
from dit_shd.training.dry_run import step_shape

DIT = dict(sample_size=8, in_channels=1, num_classes=3, num_layers=4)
SHAPE = dict(**DIT, decode_layer=2)


def step(config, images=None):
    """A step of a config, as the trainer counts it."""
    return step_shape(config, images or config.micro_batch_size or config.batch_size)


def small(heads=2, width=8):
    torch.manual_seed(0)
    return MDTv2(**SHAPE, num_attention_heads=heads, attention_head_dim=width)
