"""Classifier-free guidance (arXiv 2207.12598) with MDT's ramp (arXiv 2303.14389)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from dit_shd.core.config import make
from dit_shd.core.errors import UserError
from dit_shd.diffusion.denoiser import NO_LABEL, Denoiser
from dit_shd.diffusion.sample_config import SampleConfig
from dit_shd.models.prediction import convention_of

Number = TypeVar("Number", float, Tensor)


@dataclass(frozen=True)
class Guidance:
    """The weight of guidance along time, and the channels that are guided.

    In YAML a number stands for its scale.
    """

    scale: float
    """w at the data; 1 for none."""
    schedule: Literal["constant", "power-cosine"] = "constant"
    """The scale throughout, or MDT's ramp from 1 at the noise to the scale at the data."""
    power: float = 4.0
    """Exponent of the ramp."""
    channels: int | None = None
    """The first of the prediction that are guided (3 in the public DiT and MDT code); None for all."""

    def __post_init__(self) -> None:
        for key, value, lowest in (("scale", self.scale, 0), ("power", self.power, 0), ("channels", self.channels, 1)):
            if value is not None and not lowest <= value < math.inf:
                raise UserError(f"guidance.{key}: wanted {lowest} or more, found {value}")

    @classmethod
    def from_value(cls, value: object, where: str) -> "Guidance":
        """From YAML: a scale, or {scale: ..., key: value}.

        Raises:
            UserError: It is neither.
        """
        if isinstance(value, cls):
            return value
        return make(cls, value if isinstance(value, dict) else {"scale": value}, where)

    @property
    def changes_nothing(self) -> bool:
        """Whether the guided prediction is the conditional one."""
        return self.scale == 1

    def weight(self, share: Number, cos: Callable[[Number], Number]) -> Number | float:
        """The weight w at shares of the time, 0 at the data and 1 at the noise.

        Args:
            share: A number, or a tensor [b].
            cos: The cosine of such.
        """
        if self.schedule == "constant":
            return self.scale
        return (self.scale - 1) * (1 - cos(math.pi * (1 - share) ** self.power)) / 2 + 1  # type: ignore[arg-type]

    def combined(self, conditional: Tensor, unconditional: Tensor, share: Tensor) -> Tensor:
        """The guided prediction of both predictions [b,c,y,x] at shares of the time [b]."""
        weight = torch.as_tensor(self.weight(share.double(), torch.cos), device=share.device).to(conditional.dtype)
        return combine(conditional, unconditional, weight.view(-1, *[1] * (conditional.ndim - 1)), self.channels)


def combine(conditional: Tensor, unconditional: Tensor, weight: float | Tensor, channels: int | None) -> Tensor:
    """unconditional + w (conditional - unconditional) on the first channels, and the conditional prediction beyond."""
    base = unconditional[:, :channels]
    combined = base + weight * (conditional[:, :channels] - base)
    return combined if channels is None else torch.cat([combined, conditional[:, channels:]], dim=1)


def guidance_weight(config: SampleConfig, share: float) -> float:
    """The weight w of sampling at a share of the time, 0 at the data and 1 at the noise."""
    return Guidance(config.guidance, config.guidance_schedule, config.guidance_power).weight(share, math.cos)


class Guided:
    """A model under guidance: predict(x, time) -> [b, c or 2c, y, x].

    prediction = unconditional + w (conditional - unconditional) on the guided channels; the other channels and the
    variance are the conditional half's, as in the public MDT code. Where |w - 1| is within the tolerance that is the
    conditional half all over, and the unconditional one is not computed. Of a model of velocities the prediction is
    noise - x_0 [b,c,y,x], and time is the share of noise sigma; of others time is the timestep.

    Args:
        model: A class-conditional model.
        labels: The labels of the images [b].
        config: Its guidance and precision.
    """

    def __init__(self, model: nn.Module, labels: Tensor, config: SampleConfig):
        self.denoiser, self.labels, self.config = Denoiser(model), labels, config
        channels = self.denoiser.channels if config.guided_channels is None else config.guided_channels
        self.guided: int = min(channels, self.denoiser.channels)
        self.null = torch.full_like(labels, NO_LABEL)
        self.convention = convention_of(model)

    def __call__(self, x: Tensor, time: float) -> Tensor:
        weight = guidance_weight(self.config, time / (self.config.diffusion_steps if self.convention is None else 1))
        if not self.guided or abs(weight - 1) <= self.config.guidance_tolerance:
            return self._predict(x, time, self.labels)
        both = self._predict(torch.cat([x, x]), time, torch.cat([self.labels, self.null]))
        conditional, unconditional = both.chunk(2)
        return combine(conditional, unconditional, weight, self.guided)

    def _predict(self, x: Tensor, time: float, labels: Tensor) -> Tensor:
        t = torch.full((len(x),), time, device=x.device)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            return self.denoiser.predict(x, t, labels)
