"""The two ways from data to noise, DDPM's and rectified flow's, behind one interface, for checks and analysis of both.

A step counts the noise from 0 up, whatever the model is given as its time.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from dit_shd.diffusion.flow import noise_end, point_on_path
from dit_shd.diffusion.objectives import split
from dit_shd.diffusion.schedule import Schedule
from dit_shd.models.prediction import Convention, convention_of

FLOW_STEPS = 1000
"""Of a path, which has none by itself: sigma = step / 1000."""


class Process(ABC):
    """A way from data to noise, and how a model of it is called."""

    @abstractmethod
    def add_noise(self, x_0: Tensor, noise: Tensor, step: Tensor) -> Tensor:
        """x_t [b,...] at steps [b]."""

    @abstractmethod
    def time(self, step: Tensor) -> Tensor:
        """What the model is given at steps [b]."""

    @abstractmethod
    def noise(self, output: Tensor, x_t: Tensor, step: Tensor) -> Tensor:
        """The noise that a model's output [b, c or 2c, y, x] predicts [b,c,y,x]."""

    @abstractmethod
    def step_at(self, snr: float) -> int:
        """The step whose signal-to-noise ratio is nearest to `snr`."""


@dataclass(frozen=True)
class DDPM(Process):
    """The process of models that predict noise."""

    schedule: Schedule

    def add_noise(self, x_0: Tensor, noise: Tensor, step: Tensor) -> Tensor:
        return self.schedule.add_noise(x_0, noise, step)

    def time(self, step: Tensor) -> Tensor:
        return step

    def noise(self, output: Tensor, x_t: Tensor, step: Tensor) -> Tensor:
        return split(output, x_t.shape[1])[0]

    def step_at(self, snr: float) -> int:
        return int(np.abs(np.log(self.schedule.snr / snr)).argmin())


@dataclass(frozen=True)
class RectifiedFlow(Process):
    """The process of models that predict velocities in some convention."""

    convention: Convention

    def add_noise(self, x_0: Tensor, noise: Tensor, step: Tensor) -> Tensor:
        return point_on_path(x_0, noise, self.sigma(step))

    def time(self, step: Tensor) -> Tensor:
        return self.convention.time(self.sigma(step))

    def noise(self, output: Tensor, x_t: Tensor, step: Tensor) -> Tensor:
        velocity = self.convention.velocity(split(output, x_t.shape[1])[0])
        return noise_end(x_t, velocity, self.sigma(step))

    def step_at(self, snr: float) -> int:
        return round(FLOW_STEPS / (1 + snr**0.5))

    def sigma(self, step: Tensor) -> Tensor:
        """The share of noise at steps [b], in float32."""
        return step.to(torch.float32) / FLOW_STEPS


def process_of(model: nn.Module, timesteps: int = 1000) -> Process:
    """The process of a model, as its config says.

    Args:
        model: A class-conditional one.
        timesteps: Steps of the schedule, for a model that predicts noise.
    """
    convention = convention_of(model)
    return DDPM(Schedule.linear(timesteps)) if convention is None else RectifiedFlow(convention)
