"""The two ways from data to noise, rectified flow's and DDPM's: times, noised latents, what is predicted, and the loss.

A model's output comes here in these terms, whatever its own convention: Denoiser.predict of class-conditional models,
Adapter.predict of text to image.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from torch import Tensor

from dit_shd.diffusion.flow import (
    TimestepDensity,
    Weighting,
    loss_weight,
    noise_end,
    point_on_path,
    shifted,
    velocity_error,
)
from dit_shd.diffusion.objectives import split, variational_bits
from dit_shd.diffusion.schedule import Schedule

Terms = dict[str, Tensor]
UNIFORM = TimestepDensity()


class Process(ABC):
    """A way to noise and the loss along it."""

    kind: Literal["flow", "ddpm"]

    @abstractmethod
    def times(self, u: Tensor, shape: Sequence[int]) -> Tensor:
        """Times of uniform numbers [b], for latents of shape [b,c,y,x]."""

    @abstractmethod
    def share(self, t: Tensor) -> Tensor:
        """How far times [b] are on the way, 0 at the data and 1 at the noise."""

    @abstractmethod
    def add_noise(self, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t [b,c,y,x]."""

    def prediction(self, output: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Terms]:
        """What a model's output [b, c or 2c, y, x] predicts [b,c,y,x], and what else there is in it."""
        prediction, v = split(output, x_t.shape[1])
        return prediction, self.extra(prediction, v, x_t, t)

    def extra(self, prediction: Tensor, v: Tensor | None, x_t: Tensor, t: Tensor) -> Terms:
        """What else there is in an output of a prediction and, where there is one, a variance share v, by name."""
        return {}

    @abstractmethod
    def time_at(self, snr: float) -> float:
        """The time whose signal-to-noise ratio is, or is nearest to, `snr`."""

    @abstractmethod
    def noise(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The noise [b,c,y,x] that follows from a prediction."""

    @abstractmethod
    def losses(
        self, prediction: Tensor, extra: Mapping[str, Tensor], x_0: Tensor, noise: Tensor, x_t: Tensor, t: Tensor
    ) -> Terms:
        """The base terms [b]."""


@dataclass(frozen=True)
class Flow(Process):
    """Rectified flow; times are shares of noise, and the prediction is the velocity noise - x_0."""

    density: TimestepDensity = UNIFORM
    weighting: Weighting = "none"
    shift: Callable[[int], float] | None = None
    """alpha of an area of latents, where the density says none; None: no shift."""
    kind = "flow"

    def times(self, u: Tensor, shape: Sequence[int]) -> Tensor:
        area, density = shape[-2] * shape[-1], self.density
        if self.shift is None or density.shift is not None or density.base_side is not None:
            alpha = density.alpha(area**0.5)
        else:
            alpha = self.shift(area)
        return shifted(density.quantile(u), alpha).float()

    def share(self, t: Tensor) -> Tensor:
        return t

    def add_noise(self, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return point_on_path(x_0, noise, t)

    def time_at(self, snr: float) -> float:
        return 1 / (1 + snr**0.5)

    def noise(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return noise_end(x_t, prediction, t)

    def losses(
        self, prediction: Tensor, extra: Mapping[str, Tensor], x_0: Tensor, noise: Tensor, x_t: Tensor, t: Tensor
    ) -> Terms:
        return {"velocity": velocity_error(prediction, noise - x_0, loss_weight(self.weighting, t))}


@dataclass(frozen=True)
class Ddpm(Process):
    """DDPM; times are timesteps, and the prediction is the noise or v (arXiv 2202.00512)."""

    schedule: Schedule
    target: Literal["epsilon", "v_prediction"] = "epsilon"
    gamma: float | None = None
    """Of min-SNR; None for weight 1."""
    kind = "ddpm"

    def times(self, u: Tensor, shape: Sequence[int]) -> Tensor:
        return (u * len(self.schedule)).long()

    def share(self, t: Tensor) -> Tensor:
        return t / len(self.schedule)

    def add_noise(self, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return self.schedule.add_noise(x_0, noise, t)

    def extra(self, prediction: Tensor, v: Tensor | None, x_t: Tensor, t: Tensor) -> Terms:
        if v is None:
            return {}
        mean = self.schedule.posterior_mean(self._x_0(prediction, x_t, t), x_t, t)
        return {"variance": v, "mean": mean, "log_variance": self.schedule.log_variance(v, t)}

    def losses(
        self, prediction: Tensor, extra: Mapping[str, Tensor], x_0: Tensor, noise: Tensor, x_t: Tensor, t: Tensor
    ) -> Terms:
        target = noise if self.target == "epsilon" else self._v(x_0, noise, t)
        error = (prediction - target).square().flatten(1).mean(1)
        terms = {"noise": error if self.gamma is None else self._weight(self.gamma, t) * error}
        if "variance" in extra and self.target == "epsilon":
            terms["variational"] = variational_bits(self.schedule, x_0, x_t, prediction, extra["variance"], t)
        return terms

    def time_at(self, snr: float) -> float:
        return int(np.abs(np.log(self.schedule.snr / snr)).argmin())

    def noise(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        if self.target == "epsilon":
            return prediction
        signal, sigma = self._scales(t, x_t.ndim)
        return sigma * x_t + signal * prediction

    def _weight(self, gamma: float, t: Tensor) -> Tensor:
        """min(SNR, gamma) / SNR of the noise, / (SNR + 1) of v (min-SNR, arXiv 2303.09556)."""
        snr = self.schedule.snr
        return self.schedule.at(np.minimum(snr, gamma) / (snr + (self.target == "v_prediction")), t, 1)

    def _x_0(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        if self.target == "epsilon":
            return self.schedule.predict_x_0(x_t, prediction, t)
        signal, sigma = self._scales(t, x_t.ndim)
        return signal * x_t - sigma * prediction

    def _v(self, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        signal, sigma = self._scales(t, x_0.ndim)
        return signal * noise - sigma * x_0

    def _scales(self, t: Tensor, ndim: int) -> tuple[Tensor, Tensor]:
        kept = self.schedule.alphas_cumprod
        return self.schedule.at(np.sqrt(kept), t, ndim), self.schedule.at(np.sqrt(1 - kept), t, ndim)
