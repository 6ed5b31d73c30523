"""Guidance along the schedule that is sampled; its mathematics is in test_sampler.py."""

import math

import pytest
import torch
from diffusers.configuration_utils import FrozenDict

from dit_shd.diffusion.guidance import Guided
from dit_shd.diffusion.sample_config import SampleConfig


class Labels(torch.nn.Module):
    """A model whose output is the number of the class everywhere."""

    config = FrozenDict({"num_classes": 5, "in_channels": 1})

    def forward(self, x, t, class_labels, return_dict):
        return (torch.cat([x, x], 1) * 0 + class_labels.view(-1, 1, 1, 1).float(),)


@pytest.mark.parametrize("guidance", [3.0, 0.5])
def test_the_ramp_is_along_the_schedule_that_is_sampled(guidance):
    """Half of 100 steps is half of the way; 5 is no class."""
    config = SampleConfig(guidance=guidance, diffusion_steps=100, guided_channels=None)
    out = Guided(Labels(), torch.tensor([1]), config)(torch.zeros(1, 1, 1, 1), 50)
    weight = 1 + (guidance - 1) * (1 - math.cos(math.pi * 0.5**4)) / 2
    assert out[0, 0].item() == pytest.approx(5 + weight * (1 - 5))
