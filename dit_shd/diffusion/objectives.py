"""What a diffusion model of noise is trained on: its output in parts, and the bits of its variance."""

import math

import torch
from torch import Tensor

from dit_shd.core.errors import UserError
from dit_shd.diffusion.schedule import Schedule

MOST_GAMMA = 1e6


def checked_gamma(gamma: float | None) -> float | None:
    """The key task.min_snr_gamma: a number above 0, or none for weight 1.

    Raises:
        UserError: 0, which would weigh all errors by 0, or less, or a number without end.
    """
    if gamma is not None and not 0 < gamma <= MOST_GAMMA:
        raise UserError(
            f"task.min_snr_gamma: wanted a number above 0 and at most {MOST_GAMMA:g}, or nothing (null) for no "
            f"weighting, found {gamma}"
        )
    return gamma


def split(output: Tensor, channels: int) -> tuple[Tensor, Tensor | None]:
    """A model's output [b, c or 2c, y, x] as predicted noise and, where there is one, variance share v.

    Raises:
        ValueError: Neither c nor 2c channels.
    """
    if output.shape[1] == channels:
        return output, None
    if output.shape[1] != 2 * channels:
        raise ValueError(f"output: wanted {channels} or {2 * channels} channels, found {output.shape[1]}")
    noise, v = output.chunk(2, dim=1)
    return noise, v


def variational_bits(schedule: Schedule, x_0: Tensor, x_t: Tensor, noise: Tensor, v: Tensor, step: Tensor) -> Tensor:
    """The variational term of the learned variance in bits per dimension, per sample [b] (IDDPM eq. 16).

    KL(q(x_{t-1}|x_t,x_0) || p(x_{t-1}|x_t)); at step 0 the negative log-likelihood of a Gaussian discretised to bins
    of 1/255 each side. The predicted noise is detached: only the variance learns from this.
    """
    true_mean = schedule.posterior_mean(x_0, x_t, step)
    mean = schedule.posterior_mean(schedule.predict_x_0(x_t, noise.detach(), step), x_t, step)
    log_variance = schedule.log_variance(v, step)
    true_log_variance = schedule.at(schedule.posterior_log_variance, step, x_t.ndim)
    kl = gaussian_kl(true_mean, true_log_variance, mean, log_variance)
    nll = discretised_nll(x_0, mean, 0.5 * log_variance)
    bits = torch.where(step == 0, nll.flatten(1).mean(1), kl.flatten(1).mean(1))
    return bits / math.log(2.0)


def gaussian_kl(mean_1: Tensor, log_variance_1: Tensor, mean_2: Tensor, log_variance_2: Tensor) -> Tensor:
    """KL(N_1 || N_2) of diagonal Gaussians in nats, elementwise."""
    gap = log_variance_1 - log_variance_2
    return 0.5 * (-1.0 - gap + torch.exp(gap) + (mean_1 - mean_2).square() * torch.exp(-log_variance_2))


def discretised_nll(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """-log of the Gaussian's mass on [x - 1/255, x + 1/255] in nats, open-ended beyond +-0.999 (DDPM eq. 13)."""
    centred, inverse = x - mean, torch.exp(-log_scale)
    above, below = _normal_cdf(inverse * (centred + 1 / 255)), _normal_cdf(inverse * (centred - 1 / 255))
    mass = torch.where(x < -0.999, above, torch.where(x > 0.999, 1.0 - below, above - below))
    return -torch.log(mass.clamp(min=1e-12))


def _normal_cdf(x: Tensor) -> Tensor:
    """The tanh approximation of the normal distribution function that the public code uses."""
    return 0.5 * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x.pow(3))))
