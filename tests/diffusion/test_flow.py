"""Rectified flow: densities against diffusers and their formulas, and the path."""

import math

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3
from scipy import integrate, stats

from dit_shd.core.config import make
from dit_shd.core.errors import UserError
from dit_shd.diffusion.flow import (
    STEEPEST_MODE,
    TimestepDensity,
    loss_weight,
    noise_end,
    point_on_path,
    shifted,
)

U = torch.linspace(0.001, 0.999, 99, dtype=torch.float64)


def density(**options):
    return make(TimestepDensity, options)


# Densities


def test_logit_normal_is_the_normal_of_the_logit():
    sigma = density(name="logit_normal", mean=-0.4, std=0.7).quantile(U).numpy()
    np.testing.assert_allclose(stats.norm.cdf((np.log(sigma / (1 - sigma)) + 0.4) / 0.7), U, atol=1e-12)


@pytest.mark.parametrize("scale", [-1.0, 0.0, 0.81, 1.29, STEEPEST_MODE])
def test_mode_is_diffusers_and_monotone(scale):
    """Of the same uniform numbers."""
    u = torch.rand(500, generator=torch.Generator().manual_seed(3))
    options = {"batch_size": 500, "mode_scale": scale, "generator": torch.Generator().manual_seed(3)}
    wanted = compute_density_for_timestep_sampling("mode", **options)
    found = density(name="mode", scale=scale).quantile(u.double())
    torch.testing.assert_close(found.float(), wanted, atol=1e-6, rtol=0)
    assert bool((found[u.argsort()].diff() <= 0).all())
    assert 0 <= float(found.min()) <= float(found.max()) <= 1


def test_cosmap_has_the_density_of_the_paper():
    """SD3 eq. 21, integrated numerically: the distribution function at the quantile is u."""
    for u, sigma in zip(U[::14].tolist(), density(name="cosmap").quantile(U[::14]).tolist()):
        mass, _ = integrate.quad(lambda t: 2 / (math.pi - 2 * math.pi * t + 2 * math.pi * t * t), 0, sigma)
        assert mass == pytest.approx(u, abs=1e-9)


def test_the_shift_is_diffusers_and_moves_the_odds():
    """sigma / (1 - sigma) is multiplied by alpha (SD3, section 5.3.2)."""
    moved = shifted(U, 3.0)
    torch.testing.assert_close(moved / (1 - moved), 3 * U / (1 - U))
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=3.0)
    plain = torch.arange(1000, 0, -1, dtype=torch.float64) / 1000
    torch.testing.assert_close(shifted(plain, 3.0).float(), scheduler.sigmas[:1000], atol=1e-6, rtol=0)


def test_the_shift_goes_with_the_side():
    """Four times the pixels: alpha = sqrt(4) (eq. 23)."""
    chosen = density(shift=1.5, base_side=32)
    assert (chosen.alpha(32), chosen.alpha(64), density(shift=1.5).alpha(64)) == (1.5, 3.0, 1.5)


@pytest.mark.parametrize(
    ("key", "value"), [("std", 0.0), ("scale", 1.76), ("shift", 0.0), ("base_side", 0), ("mean", 99)]
)
def test_a_density_out_of_range_is_refused(key, value):
    with pytest.raises(UserError, match=rf"^task\.timestep_density\.{key}: wanted .* found {value}"):
        density(**{key: value}).check("task.timestep_density.")


@pytest.mark.parametrize(("key", "name"), [("std", "uniform"), ("mean", "mode"), ("scale", "logit_normal")])
def test_numbers_of_another_density_are_refused(key, name):
    with pytest.raises(UserError, match=rf"^density\.{key}: 0\.5 is of the density .*, found name {name}"):
        TimestepDensity(name, **{key: 0.5}).check("density.")


@pytest.mark.parametrize("weighting", ["none", "cosmap", "sigma_sqrt"])
def test_loss_weights_are_diffusers(weighting):
    sigma = torch.linspace(0.001, 1, 50)
    torch.testing.assert_close(loss_weight(weighting, sigma), compute_loss_weighting_for_sd3(weighting, sigma))


def test_next_to_the_data_a_weight_ends_at_that_of_a_thousandth():
    found = loss_weight("sigma_sqrt", torch.tensor([0.0, 1e-5, 1e-3, 2e-3]).double())
    torch.testing.assert_close(found, torch.tensor([1e6, 1e6, 1e6, 250_000]).double())


# The path


def test_a_line_through_a_point_ends_at_its_noise():
    g = torch.Generator().manual_seed(0)
    x_0, noise = (torch.randn(5, 2, 3, 3, generator=g, dtype=torch.float64) for _ in range(2))
    sigma = torch.tensor([0.0, 0.2, 0.5, 0.9, 1.0])
    x = point_on_path(x_0, noise, sigma)
    torch.testing.assert_close(x[0], x_0[0])
    torch.testing.assert_close(x[-1], noise[-1])
    torch.testing.assert_close(noise_end(x, noise - x_0, sigma), noise, atol=1e-7, rtol=0)
