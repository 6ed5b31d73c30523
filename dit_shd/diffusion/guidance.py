"""Classifier-free guidance (arXiv 2207.12598) with MDT's ramp (arXiv 2303.14389)."""

import math

import torch
from torch import Tensor, nn

from dit_shd.diffusion.denoiser import NO_LABEL, Denoiser
from dit_shd.diffusion.objectives import split
from dit_shd.diffusion.sample_config import SampleConfig
from dit_shd.models.prediction import convention_of


def guidance_weight(config: SampleConfig, share: float) -> float:
    """The weight w at a share of the time, 0 at the data and 1 at the noise.

    It is the scale throughout, or follows MDT's power-cosine ramp from 1 at the noise to the scale at the data.
    """
    if config.guidance_schedule == "constant":
        return config.guidance
    return (config.guidance - 1) * (1 - math.cos(math.pi * (1 - share) ** config.guidance_power)) / 2 + 1


class Guided:
    """A model under guidance: predict(x, time) -> [b, c or 2c, y, x].

    prediction = unconditional + w (conditional - unconditional) on the guided channels; the other channels and the
    variance are the conditional half's, as in the public MDT code. Where |w - 1| is within the tolerance that is the
    conditional half all over, and the unconditional one is not computed. Of a model of velocities the prediction is
    noise - x_0 [b,c,y,x], and time is the share of noise sigma; of others time is the timestep.

    Args:
        model: A class-conditional model.
        labels: Of the images [b].
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
        base = unconditional[:, : self.guided]
        prediction = base + weight * (conditional[:, : self.guided] - base)
        return torch.cat([prediction, conditional[:, self.guided :]], dim=1)

    def _predict(self, x: Tensor, time: float, labels: Tensor) -> Tensor:
        t = torch.full((len(x),), time, device=x.device)
        if self.convention is not None:
            t = self.convention.time(t)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            output = self.denoiser(x, t, labels).float()
        return output if self.convention is None else self.convention.velocity(split(output, x.shape[1])[0])
