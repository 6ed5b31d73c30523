"""Steps whose operations are counted, and small models for them."""

import pytest
import torch

from dit_shd.models.families.mdt import MDTv2
from dit_shd.profiling.estimate import hours, peaks
from dit_shd.training.dry_run import step_shape

DIT = dict(sample_size=8, in_channels=1, num_classes=3, num_layers=4)
SHAPE = dict(**DIT, decode_layer=2)


def step(config, images=None):
    """A step of a config, as the trainer counts it."""
    return step_shape(config, images or config.micro_batch_size or config.batch_size)


def small(heads=2, width=8):
    torch.manual_seed(0)
    return MDTv2(**SHAPE, num_attention_heads=heads, attention_head_dim=width)


def check_costs(config, operations, told):
    """GFLOP of one sample, EFLOP of the run, and its hours on an A100 and an H100, as a header has them."""
    whole = operations.executed * config.batch_size * config.steps
    spent = [hours(whole, peak, config.estimate.mfu) for peak in peaks(config.precision).values()]
    for number, text in zip([operations.total / 1e9, whole / 1e18, *spent], told):
        assert number == pytest.approx(float(text), rel=0.01)
