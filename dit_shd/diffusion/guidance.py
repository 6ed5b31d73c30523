"""Classifier-free guidance (arXiv 2207.12598) with MDT's ramp (arXiv 2303.14389)."""

import math

import torch
from torch import Tensor, nn

from dit_shd.diffusion.sample_config import SampleConfig
from dit_shd.models.shape import shape_of


def guidance_weight(config: SampleConfig, timestep: float) -> float:
    """w(t) of an original timestep: MDT's power-cosine ramp from 1 at T to the scale at 0, or the scale throughout."""
    if config.guidance_schedule == "constant":
        return config.guidance
    share = (1 - timestep / config.diffusion_steps) ** config.guidance_power
    return (config.guidance - 1) * (1 - math.cos(math.pi * share)) / 2 + 1


class Guided:
    """A model under guidance: predict(x, timestep) -> [b, c or 2c, y, x].

    noise = unconditional + w(t) (conditional - unconditional) on the guided channels; the other channels and the
    variance are the conditional half's, as in the public MDT code. Where |w(t) - 1| is within the tolerance that is
    the conditional half all over, and the unconditional one is not computed.
    """

    def __init__(self, model: nn.Module, labels: Tensor, config: SampleConfig):
        shape = shape_of(model)
        channels = shape.channels if config.guided_channels is None else config.guided_channels
        self.model, self.labels, self.config = model, labels, config
        self.guided: int = min(channels, shape.channels)
        self.null = torch.full_like(labels, shape.classes)

    def __call__(self, x: Tensor, timestep: int) -> Tensor:
        weight = guidance_weight(self.config, timestep)
        if not self.guided or abs(weight - 1) <= self.config.guidance_tolerance:
            return self._predict(x, timestep, self.labels)
        both = self._predict(torch.cat([x, x]), timestep, torch.cat([self.labels, self.null]))
        conditional, unconditional = both.chunk(2)
        base = unconditional[:, : self.guided]
        noise = base + weight * (conditional[:, : self.guided] - base)
        return torch.cat([noise, conditional[:, self.guided :]], dim=1)

    def _predict(self, x: Tensor, timestep: int, labels: Tensor) -> Tensor:
        t = torch.full((len(x),), timestep, device=x.device)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            return self.model(x, t, class_labels=labels, return_dict=False)[0].float()
