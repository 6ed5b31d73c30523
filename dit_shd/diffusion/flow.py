"""Rectified flow: straight paths between data and noise (arXiv 2209.03003; SD3, arXiv 2403.03206, section 2).

x = (1 - sigma) x_0 + sigma noise, with sigma the share of noise: 0 at the data, 1 at the noise, whichever way a model
counts its time (models/prediction.py). The velocity here is always dx / dsigma = noise - x_0.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dit_shd.core.config import check_ranges, option
from dit_shd.core.errors import UserError

Weighting = Literal["none", "cosmap", "sigma_sqrt"]
"""Of the loss by sigma; diffusers' training scripts for SD3 have the same."""
STEEPEST_MODE = 2 / (math.pi - 2)
"""The largest `scale` for which the map of the mode density is monotone (SD3, section 3.1)."""
SMALLEST_SIGMA = 1e-3
"""At which sigma_sqrt, 1 / sigma^2, is cut off: the first of diffusers' 1,000 steps."""


@dataclass(frozen=True)
class TimestepDensity:
    """How often each sigma is trained (SD3, section 3.1), given by its quantile function."""

    name: Literal["uniform", "logit_normal", "mode", "cosmap"] = option(
        "uniform", "uniform (SiT), or logit_normal, mode or cosmap of SD3"
    )
    mean: float = option(0.0, "of logit_normal: above 0 more noise, below 0 less", range=(-20, 20))
    std: float = option(1.0, "of logit_normal", range=(1e-3, 20))
    scale: float = option(
        1.29, "of mode: above 0 the middle is trained more, below 0 the ends", range=(-1, STEEPEST_MODE)
    )
    shift: float | None = option(
        None,
        "alpha of SD3's resolution-dependent shift: above 1 more noise; 1 for none; empty: in text to image the "
        "pipeline scheduler's, else none",
        range=(1e-3, 1e3),
    )
    base_side: int | None = option(
        None,
        "side of the latents that density and shift were chosen for: alpha is then multiplied by side / base_side",
        range=(1, 2**20),
    )

    def check(self, where: str) -> None:
        """Refuse numbers out of their ranges, and those of another density than the named one.

        Args:
            where: What the keys are below, for the message.

        Raises:
            UserError: Naming the key.
        """
        check_ranges(self, where)
        for key, name in (("mean", "logit_normal"), ("std", "logit_normal"), ("scale", "mode")):
            value = getattr(self, key)
            if self.name != name and value != getattr(TimestepDensity, key):
                raise UserError(
                    f"{where}{key}: {value} is of the density {name}, found name {self.name}; leave one out"
                )

    def alpha(self, side: float) -> float:
        """The shift for latents of the area of a square: sqrt(m / n) of SD3 eq. 23, with m and n counting pixels."""
        return (1.0 if self.shift is None else self.shift) * (1.0 if self.base_side is None else side / self.base_side)

    def quantile(self, u: Tensor) -> Tensor:
        """Sigmas [b] of uniform numbers [b] in float64, without the shift (SD3 eqs. 19, 20 and 21)."""
        if self.name == "logit_normal":
            return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u))
        if self.name == "mode":
            return 1 - u - self.scale * (torch.cos(math.pi / 2 * u).square() - 1 + u)
        if self.name == "cosmap":
            return 1 - 1 / (torch.tan(math.pi / 2 * u) + 1)
        return u


def shifted(sigma: Tensor, alpha: float) -> Tensor:
    """SD3 eq. 23: the sigma that leaves as much of an image alpha^2 times as large as `sigma` leaves of the image."""
    return alpha * sigma / (1 + (alpha - 1) * sigma)


def point_on_path(x_0: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """The points (1 - sigma) x_0 + sigma noise [b,...], for sigmas [b]."""
    s = _beside(sigma, x_0)
    return (1 - s) * x_0 + s * noise


def noise_end(x: Tensor, velocity: Tensor, sigma: Tensor) -> Tensor:
    """The noise at which the straight line through x with that velocity ends."""
    return x + (1 - _beside(sigma, x)) * velocity


def loss_weight(weighting: Weighting, sigma: Tensor) -> Tensor:
    """The weight of the velocity's error [b] at sigmas [b] (CosMap: SD3 eq. 21, as a weight of uniform sigmas)."""
    if weighting == "cosmap":
        return 2 / (math.pi * (1 - 2 * sigma + 2 * sigma.square()))
    if weighting == "sigma_sqrt":
        return sigma.clamp(min=SMALLEST_SIGMA) ** -2.0
    return torch.ones_like(sigma)


def velocity_error(velocity: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """Weighted MSE per sample [b] (conditional flow matching, SD3 eq. 5)."""
    return weight * (velocity - target).square().flatten(1).mean(1)


def _beside(sigma: Tensor, x: Tensor) -> Tensor:
    return sigma.to(x.dtype).view(-1, *[1] * (x.ndim - 1))
