"""From noise to images: ancestral DDPM, DDIM and DPM-Solver++ of noise, Euler and Heun of velocity."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dit_shd.core import rng
from dit_shd.core.prefetch import prefetch
from dit_shd.diffusion.flow import shifted
from dit_shd.diffusion.objectives import split
from dit_shd.diffusion.sample_config import VELOCITY_SOLVERS, SampleConfig
from dit_shd.diffusion.schedule import Schedule

if TYPE_CHECKING:
    from diffusers import DPMSolverMultistepScheduler


def solve(
    predict: Callable[[Tensor, float], Tensor],
    config: SampleConfig,
    indices: Sequence[int],
    shape: tuple[int, ...],
    device: torch.device,
) -> Tensor:
    """Run the config's solver from noise to x_0 [b,c,y,x].

    Args:
        predict: The model's output at x [b,c,y,x] and a timestep or, of a model of velocities, a share of noise sigma.
        config: Its solver is not auto.
        indices: The images' numbers, of which their noise is a function.
        shape: The shape of one latent (c, y, x).
        device: Where x is to be.
    """
    run = integrate if config.solver in VELOCITY_SOLVERS else denoise
    return run(predict, config, indices, shape, device)


def network_calls(config: SampleConfig) -> int:
    """Number of predictions that a solver takes of an image."""
    return 2 * config.steps - 1 if config.solver == "heun" else config.steps


def integrate(
    predict: Callable[[Tensor, float], Tensor],
    config: SampleConfig,
    indices: Sequence[int],
    shape: tuple[int, ...],
    device: torch.device,
) -> Tensor:
    """Solve dx / dsigma = velocity from sigma = 1 to 0 by Euler's or Heun's steps, the last of which is Euler's.

    The steps are evenly spaced, and then shifted (SD3, arXiv 2403.03206, eq. 23).
    """
    (x,) = noises(config, indices, shape, device, [0])
    even = torch.linspace(1, 0, config.steps + 1, dtype=torch.float64)
    sigmas = shifted(even, 1.0 if config.shift is None else config.shift).tolist()
    for sigma, following in pairwise(sigmas):
        velocity = predict(x, sigma)
        ahead = x + (following - sigma) * velocity
        if config.solver == "heun" and following > 0:
            ahead = x + (following - sigma) * (velocity + predict(ahead, following)) / 2
        x = ahead
    return x


def denoise(
    predict: Callable[[Tensor, float], Tensor],
    config: SampleConfig,
    indices: Sequence[int],
    shape: tuple[int, ...],
    device: torch.device,
) -> Tensor:
    """Denoise by a solver of noise (Ho et al. 2020, algorithm 2, with the learned variance)."""
    channels, full = shape[0], Schedule.linear(config.diffusion_steps)
    if config.solver == "dpm++":
        (x,), scheduler = noises(config, indices, shape, device, [0]), _dpm_solver(config, full)
        for t in scheduler.timesteps:
            predicted, _ = split(predict(x, int(t)), channels)
            x = scheduler.step(predicted, t, x, return_dict=False)[0]
        return x
    schedule = full.respaced(config.steps)
    steps = list(reversed(range(len(schedule))))
    fresh = noises(config, indices, shape, device, [0] if config.solver == "ddim" else [0, *steps[:-1]])
    x = next(fresh)
    for step in steps:
        predicted, v = split(predict(x, int(schedule.timesteps[step])), channels)
        at = torch.full((len(x),), step, device=device)
        if config.solver == "ddim":
            x = schedule.ddim_step(x, predicted, at)
        else:
            x = schedule.ddpm_step(x, predicted, v, at, next(fresh) if step else torch.zeros_like(x))
    return x


def noises(
    config: SampleConfig, indices: Sequence[int], shape: tuple[int, ...], device: torch.device, steps: Sequence[int]
) -> Iterator[Tensor]:
    """The noise [b,c,y,x] of one step after the other; the next is drawn by a thread while the network works."""

    def one(step: int) -> Tensor:
        noise = rng.normal(config.seed, "sample", step, indices, shape)
        return noise.pin_memory() if device.type == "cuda" else noise

    for noise in prefetch(one, steps):
        yield noise.to(device, non_blocking=True)


def _dpm_solver(config: SampleConfig, schedule: Schedule) -> "DPMSolverMultistepScheduler":
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(
        num_train_timesteps=len(schedule),
        trained_betas=schedule.betas.tolist(),
        timestep_spacing="linspace",
        algorithm_type="dpmsolver++",
    )
    if config.steps == len(schedule):  # diffusers would visit one of them twice, and divide by the way between
        scheduler.set_timesteps(timesteps=list(range(len(schedule)))[::-1])
    else:
        scheduler.set_timesteps(config.steps)
    return scheduler
