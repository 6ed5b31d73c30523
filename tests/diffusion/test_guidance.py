"""Guidance: its mathematics by hand, and along the schedule that is sampled."""

import math

import numpy as np
import pytest
import torch
from diffusers.configuration_utils import FrozenDict

from dit_shd.core.config import make
from dit_shd.diffusion.guidance import Guided, guidance_weight
from dit_shd.diffusion.sample_config import SampleConfig
from dit_shd.diffusion.schedule import Schedule
from dit_shd.diffusion.solvers import denoise
from dit_shd.models.loading import load


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


def test_power_cosine_ramps_from_one_to_the_scale():
    config, constant = SampleConfig(guidance=3.8), SampleConfig(guidance=3.8, guidance_schedule="constant")
    for t in (0, 250, 500, 999):
        expected = 1 + 2.8 * (1 - np.cos(np.pi * (1 - t / 1000) ** 4)) / 2
        assert guidance_weight(config, t / 1000) == pytest.approx(expected, rel=1e-12)
        assert guidance_weight(constant, t / 1000) == 3.8


def test_guidance_by_hand():
    """Guided channels extrapolate, the others and the variance are the conditional half's."""

    class Fake(torch.nn.Module):
        config = type("C", (dict,), {"__getattr__": dict.__getitem__})(num_classes=5, in_channels=2)

        def forward(self, x, t, class_labels, return_dict):
            return (torch.cat([x, x], 1) * 0 + class_labels.view(-1, 1, 1, 1).float(),)

    config = SampleConfig(guidance=3.0, guidance_schedule="constant", guided_channels=1)
    out = Guided(Fake(), torch.tensor([1, 2]), config)(torch.zeros(2, 2, 1, 1), 9)
    assert out[:, :, 0, 0].tolist() == [[5 + 3 * (1 - 5), 1, 1, 1], [5 + 3 * (2 - 5), 2, 2, 2]]
    plain = Guided(Fake(), torch.tensor([1, 2]), SampleConfig(guidance=1.0))(torch.zeros(2, 2, 1, 1), 9)
    assert plain[:, 0, 0, 0].tolist() == [1, 2]


def test_the_unconditional_half_is_computed_only_where_guidance_weighs():
    """A model that counts what it is given: half as much where |w - 1| is within the tolerance."""
    given = []

    class Counts(torch.nn.Module):
        config = type("C", (dict,), {"__getattr__": dict.__getitem__})(num_classes=5, in_channels=1)

        def forward(self, x, t, class_labels, return_dict):
            given.append(len(x))
            return (torch.cat([x, x], 1),)

    config = make(SampleConfig, dict(guidance=3.8))
    timesteps = Schedule.linear().respaced(250).timesteps
    for t in timesteps:
        Guided(Counts(), torch.tensor([1, 2]), config)(torch.zeros(2, 1, 1, 1), int(t))
    within = [2.8 * (1 - np.cos(np.pi * (1 - t / 1000) ** 4)) / 2 <= 1e-3 for t in timesteps]
    assert given == [2 if skipped else 4 for skipped in within]
    assert 0.3 < np.mean(within) < 0.36
    given.clear()
    for changes in (dict(guidance=1.0, guidance_tolerance=0.0), dict(guided_channels=0)):
        Guided(Counts(), torch.tensor([1, 2]), make(SampleConfig, changes))(torch.zeros(2, 1, 1, 1), 9)
    assert given == [2, 2]


def test_skipping_guidance_moves_pixels_by_less_than_a_level():
    """The packaged teacher at the default tolerance against the full computation, before rounding to uint8."""
    teacher = load("asset:digits_teacher").eval()
    pixels = []
    for tolerance in (0.0, SampleConfig.guidance_tolerance):
        config = make(SampleConfig, dict(steps=50, guidance_tolerance=tolerance))
        with torch.no_grad():
            guided = Guided(teacher, torch.arange(8), config)
            pixels.append(denoise(guided, config, range(8), (1, 28, 28), torch.device("cpu")).clamp(-1, 1))
    apart = (pixels[1] - pixels[0]).abs() * 127.5
    assert apart.max() > 0
    assert (apart < 1).float().mean() >= 0.999


def test_guidance_of_velocity_by_hand(flow_teacher):
    network = load(flow_teacher).eval()
    config = SampleConfig(guidance=3.0, guidance_schedule="constant")
    x, labels = torch.randn(2, 1, 8, 8), torch.tensor([0, 2])
    t = torch.full((2,), 250.0)
    conditional = network(x, t, class_labels=labels, return_dict=False)[0]
    none = network(x, t, class_labels=torch.tensor([3, 3]), return_dict=False)[0]
    torch.testing.assert_close(Guided(network, labels, config)(x, 0.25), none + 3 * (conditional - none))
