"""From noise to images: ancestral DDPM, DDIM, DPM-Solver++."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from dit_shd.core import rng
from dit_shd.core.prefetch import prefetch
from dit_shd.diffusion.objectives import split
from dit_shd.diffusion.sample_config import SampleConfig
from dit_shd.diffusion.schedule import Schedule


def denoise(
    predict: Callable[[Tensor, int], Tensor],
    config: SampleConfig,
    indices: Sequence[int],
    shape: tuple[int, ...],
    device: torch.device,
) -> Tensor:
    """Run the solver from noise to x_0 [b,c,y,x] (Ho et al. 2020, algorithm 2, with the learned variance)."""
    channels, full = shape[0], Schedule.linear(config.diffusion_steps)
    if config.solver == "dpm++":
        (x,), scheduler = noises(config, indices, shape, device, [0]), _dpm_solver(config, full)
        for t in scheduler.timesteps:
            predicted, _ = split(predict(x, int(t)), channels)
            x = scheduler.step(predicted, t, x, return_dict=False)[0]
        return x
    schedule = full.respaced(config.steps)
    steps = list(reversed(range(len(schedule))))
    fresh = noises(config, indices, shape, device, [0, *steps[:-1]] if config.solver == "ddpm" else [0])
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


def _dpm_solver(config: SampleConfig, schedule: Schedule) -> Any:
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
