"""The way to noise of a text-to-image pipeline, as its scheduler's config has it, and the loss along it."""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dit_shd.core.errors import UserError
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
Shift = Callable[[Mapping[str, Any], int], float | None]
"""Of the scheduler's config and the image's tokens."""


class TextProcess(ABC):
    """A way to noise and the loss along it."""

    kind: Literal["flow", "ddpm"]

    @abstractmethod
    def times(self, u: Tensor, shape: Sequence[int]) -> Tensor:
        """Times of uniform numbers [b], for latents of shape [b,c,y,x]."""

    @abstractmethod
    def share(self, t: Tensor) -> Tensor:
        """How far times [b] are on the way, 0 at the data and 1 at the noise."""

    @abstractmethod
    def example_times(self, images: int, device: torch.device) -> Tensor:
        """Some times [b]."""

    @abstractmethod
    def add_noise(self, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t [b,c,y,x]."""

    @abstractmethod
    def prediction(self, output: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """What an adapter's prediction [b, c or 2c, y, x] predicts, and what else there is in it."""

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
class Flow(TextProcess):
    """Rectified flow; times are shares of noise."""

    density: TimestepDensity
    scheduler: Mapping[str, Any]
    weighting: Weighting
    multiple: int
    """Side of a token's patch."""
    shift: Shift | None = None
    """Of a pipeline that does not go by its scheduler's config."""
    kind = "flow"

    def times(self, u: Tensor, shape: Sequence[int]) -> Tensor:
        area = shape[-2] * shape[-1]
        tokens = area // self.multiple**2
        alpha = self.density.alpha(area**0.5) if _sets_shift(self.density) else self._alpha(tokens)
        return shifted(self.density.quantile(u), alpha).float()

    def _alpha(self, tokens: int) -> float:
        alpha = None if self.shift is None else self.shift(self.scheduler, tokens)
        return pipeline_shift(self.scheduler, tokens) if alpha is None else alpha

    def share(self, t: Tensor) -> Tensor:
        return t

    def example_times(self, images: int, device: torch.device) -> Tensor:
        return torch.full((images,), 0.5, device=device)

    def add_noise(self, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return point_on_path(x_0, noise, t)

    def prediction(self, output: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return split(output, x_t.shape[1])[0], {}

    def time_at(self, snr: float) -> float:
        return 1 / (1 + snr**0.5)

    def noise(self, prediction: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        return noise_end(x_t, prediction, t)

    def losses(
        self, prediction: Tensor, extra: Mapping[str, Tensor], x_0: Tensor, noise: Tensor, x_t: Tensor, t: Tensor
    ) -> Terms:
        return {"velocity": velocity_error(prediction, noise - x_0, loss_weight(self.weighting, t))}


@dataclass(frozen=True)
class Ddpm(TextProcess):
    """DDPM; times are timesteps, and the prediction is the noise or v (arXiv 2202.00512)."""

    schedule: Schedule
    target: Literal["epsilon", "v_prediction"]
    gamma: float | None
    kind = "ddpm"

    def times(self, u: Tensor, shape: Sequence[int]) -> Tensor:
        return (u * len(self.schedule)).long()

    def share(self, t: Tensor) -> Tensor:
        return t / len(self.schedule)

    def example_times(self, images: int, device: torch.device) -> Tensor:
        return torch.full((images,), len(self.schedule) // 2, dtype=torch.long, device=device)

    def add_noise(self, x_0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return self.schedule.add_noise(x_0, noise, t)

    def prediction(self, output: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        prediction, v = split(output, x_t.shape[1])
        if v is None:
            return prediction, {}
        mean = self.schedule.posterior_mean(self._x_0(prediction, x_t, t), x_t, t)
        return prediction, {"variance": v, "mean": mean, "log_variance": self.schedule.log_variance(v, t)}

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


def process_of(
    kind: Literal["flow", "ddpm"],
    scheduler: Mapping[str, Any],
    density: TimestepDensity,
    weighting: Weighting,
    gamma: float | None,
    multiple: int,
    shift: Shift | None = None,
) -> TextProcess:
    """The process of a pipeline.

    Args:
        kind: As its transformer's adapter has it.
        scheduler: The config of its scheduler.
        density: The density of flow's timesteps.
        weighting: The weighting of flow's loss.
        gamma: Of DDPM, for min-SNR; None for weight 1.
        multiple: Side of a token's patch of the latents.
        shift: Of flow: the adapter's, which gives None where the scheduler's config says it.

    Raises:
        UserError: A scheduler whose betas or predictions are not known here, or one of DDPM where flow is wanted.
    """
    if kind == "flow":
        if "beta_schedule" in scheduler and not is_flow(scheduler):
            name = scheduler.get("_class_name", "another")
            raise UserError(f"the pipeline's scheduler: wanted one of rectified flow, found {name}; not supported")
        return Flow(density, scheduler, weighting, multiple, shift)
    target = scheduler.get("prediction_type", "epsilon")
    if target not in ("epsilon", "v_prediction"):
        raise UserError(f"the pipeline's scheduler: prediction_type: wanted epsilon or v_prediction, found {target}")
    return Ddpm(ddpm_schedule(scheduler), target, gamma)


def is_flow(scheduler: Mapping[str, Any]) -> bool:
    """Whether a scheduler's config is of rectified flow."""
    is_named = "FlowMatch" in str(scheduler.get("_class_name"))
    return is_named or scheduler.get("prediction_type") == "flow_prediction" or bool(scheduler.get("use_flow_sigmas"))


def ddpm_schedule(scheduler: Mapping[str, Any]) -> Schedule:
    """The noise schedule in a scheduler's config, in diffusers' terms; of an empty one that of diffusers' defaults.

    Raises:
        UserError: Betas of a kind that is not known here, or none.
    """
    scheduler = {**_defaults(scheduler), **scheduler} or {"beta_start": 1e-4, "beta_end": 0.02}
    steps, kind = scheduler.get("num_train_timesteps", 1000), scheduler.get("beta_schedule", "linear")
    first, last = scheduler.get("beta_start"), scheduler.get("beta_end")
    if scheduler.get("rescale_betas_zero_snr"):
        raise UserError("the pipeline's scheduler: rescale_betas_zero_snr: wanted false, found true; not supported")
    if (factor := scheduler.get("snr_shift_scale", 1)) != 1:
        raise UserError(f"the pipeline's scheduler: snr_shift_scale: wanted 1, found {factor}; not supported")
    if scheduler.get("trained_betas") is not None:
        betas = np.array(scheduler["trained_betas"], dtype=np.float64)
        steps = len(betas)
    elif kind not in ("linear", "scaled_linear"):
        raise UserError(f"the pipeline's scheduler: beta_schedule: wanted linear or scaled_linear, found {kind}")
    elif first is None or last is None:
        name = scheduler.get("_class_name", "a scheduler")
        raise UserError(
            f"the pipeline's scheduler: wanted one of DDPM, with beta_start and beta_end or with trained_betas, found "
            f"{name} without; not supported"
        )
    elif kind == "linear":
        betas = np.linspace(first, last, steps)
    else:
        betas = np.linspace(first**0.5, last**0.5, steps) ** 2
    return Schedule(betas, np.arange(steps))


def _defaults(scheduler: Mapping[str, Any]) -> dict[str, Any]:
    """What diffusers has of a class's settings that its config does not name; none of a class that is not there."""
    import diffusers

    cls = getattr(diffusers, str(scheduler.get("_class_name")), None)
    known = {} if cls is None else inspect.signature(cls.__init__).parameters
    return {name: given.default for name, given in known.items() if given.default is not inspect.Parameter.empty}


def pipeline_shift(scheduler: Mapping[str, Any], tokens: int) -> float:
    """alpha of SD3 eq. 23 that the scheduler's steps have at a number of image tokens.

    A dynamic shift is exp(mu), with mu a line through (base_image_seq_len, base_shift) and (max_image_seq_len,
    max_shift).
    """
    if not scheduler.get("use_dynamic_shifting"):
        return float(scheduler.get("shift") or scheduler.get("flow_shift") or 1.0)
    low, high = scheduler.get("base_image_seq_len", 256), scheduler.get("max_image_seq_len", 4096)
    first, last = scheduler.get("base_shift", 0.5), scheduler.get("max_shift", 1.15)
    mu = first + (last - first) * (tokens - low) / (high - low)
    return math.exp(mu) if scheduler.get("time_shift_type", "exponential") == "exponential" else mu


def _sets_shift(density: TimestepDensity) -> bool:
    return density.shift is not None or density.base_side is not None
