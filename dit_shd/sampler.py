"""Images from a model: DDPM (or DDIM, DPM-Solver++) with classifier-free guidance.

    model = dit_shd.models.load("runs/student")
    images, labels = dit_shd.sampler.sample(model, count=16, steps=250, guidance=3.8)

Image i depends on the seed and on i only: its noise is a stream of its own, whatever the batch or the process.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from dit_shd import randomness
from dit_shd.config import make, option
from dit_shd.diffusion import Schedule, split
from dit_shd.distiller import classes_of
from dit_shd.errors import UserError
from dit_shd.pictures import grid, to_uint8


@dataclass(frozen=True)
class SampleConfig:
    """What to sample and how; the defaults are MDT's protocol for reported figures."""

    run: str = option("", "run folder, diffusers folder, public checkpoint file, or asset:NAME")
    count: int = option(50_000, "images")
    steps: int = option(250, "sampling steps, evenly spaced over the schedule")
    solver: Literal["ddpm", "ddim", "dpm++"] = option(
        "ddpm", "ddpm (ancestral), ddim (eta 0), or diffusers' DPM-Solver++"
    )
    guidance: float = option(3.8, "classifier-free guidance scale; 1 for none")
    guidance_schedule: Literal["power-cosine", "constant"] = option(
        "power-cosine", "MDT's ramp, or the scale throughout"
    )
    guidance_power: float = option(4.0, "exponent of the power-cosine ramp; 0.01 with guidance 4 for pretty pictures")
    guided_channels: int | None = option(3, "noise channels that are guided (the public code's 3); empty for all")
    labels: Literal["random", "balanced"] = option("random", "class of image i: drawn, or i modulo the classes")
    rounding: Literal["floor", "nearest"] = option("floor", "to uint8: floor (MDT) or nearest (DiT); it moves FID")
    seed: int = option(0, "image i is a function of the seed and i")
    batch_size: int = option(64, "images in one batch of one process")
    diffusion_steps: int = option(1000, "steps of the schedule the model was trained with; a run folder knows its own")
    vae: str | None = option(None, "AutoencoderKL to decode latents: folder or hub name; empty: latents are pixels")
    precision: Literal["no", "bf16"] = option("no", "autocast of the network")
    out: Path | None = option(None, "the npz; empty: samples_<count>_seed<seed>.npz in the run folder")
    force: bool = option(False, "replace an npz that is there already")

    def check(self) -> None:
        for key in ("count", "batch_size", "diffusion_steps"):
            if getattr(self, key) < 1:
                raise UserError(f"{key}: wanted 1 or more, found {getattr(self, key)}")
        if self.count > 10**8 or self.diffusion_steps > 10**6:
            raise UserError("wanted count up to 10^8 and diffusion_steps up to 10^6, found more")
        if not 1 <= self.steps <= self.diffusion_steps:
            raise UserError(f"steps: wanted 1 to {self.diffusion_steps}, found {self.steps}")
        if self.guided_channels is not None and self.guided_channels < 0:
            raise UserError(f"guided_channels: wanted 0 or more, found {self.guided_channels}")


def sample(
    model: nn.Module, count: int, labels: Sequence[int] | str = "random", **options: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [count,y,x,c] and their labels int64 [count].

    Args:
        labels: the class of each image, or how to choose it (random or balanced).
        options: any key of SampleConfig (steps, guidance, seed, batch_size, vae, ...).
    """
    policy = labels if isinstance(labels, str) else "random"
    config = make(SampleConfig, {**options, "count": count, "labels": policy}, "sample")
    config.check()
    plan = label_plan(config, classes_of(model)) if isinstance(labels, str) else np.asarray(labels, dtype=np.int64)
    if plan.shape != (count,):
        raise UserError(f"labels: wanted {count}, one for each image, found {plan.shape}")
    if plan.min() < 0 or plan.max() >= classes_of(model):
        raise UserError(f"labels: wanted classes 0 to {classes_of(model) - 1}, found {plan.min()} to {plan.max()}")
    decode = decoder(config, device_of(model))
    parts = [
        draw(model, config, plan, range(first, min(first + config.batch_size, count)), decode)
        for first in range(0, count, config.batch_size)
    ]
    return np.concatenate(parts), plan


def label_plan(config: SampleConfig, classes: int) -> np.ndarray:
    """The class of every image, int64 [count]: a function of the seed and the image's number."""
    if config.labels == "balanced":
        return np.arange(config.count) % classes
    draws = [int(randomness.stream(config.seed, "sample label", 0, i).integers(classes)) for i in range(config.count)]
    return np.array(draws, dtype=np.int64)


@torch.no_grad()
def draw(
    model: nn.Module,
    config: SampleConfig,
    plan: np.ndarray,
    indices: Sequence[int],
    decode: Callable[[Tensor], Tensor],
) -> np.ndarray:
    """The images of some indices of the plan: uint8 [b,y,x,c]."""
    device = device_of(model)
    labels = torch.from_numpy(plan[list(indices)]).to(device)
    config_of: Any = model.config
    shape = (config_of.in_channels, config_of.sample_size, config_of.sample_size)
    was_training = model.training
    model.eval()
    try:
        latents = denoise(Guided(model, labels, config), config, indices, shape, device)
    finally:
        model.train(was_training)
    if not bool(torch.isfinite(latents).all()):
        raise UserError(
            f"sampling images {indices[0]}..{indices[-1]}: the model's output is not finite (NaN or infinity)"
        )
    return to_uint8(decode(latents).float(), config.rounding)


def denoise(
    predict: Callable[[Tensor, Tensor], Tensor],
    config: SampleConfig,
    indices: Sequence[int],
    shape: tuple[int, ...],
    device: torch.device,
) -> Tensor:
    """Run the solver from noise to x_0 [b,c,y,x] (Ho et al. 2020, algorithm 2, with the learned variance)."""
    b, channels = len(indices), shape[0]

    def noise(step: int) -> Tensor:
        return randomness.normal(config.seed, "sample", step, indices, shape).to(device)

    full = Schedule.linear(config.diffusion_steps)
    x = noise(0)
    if config.solver == "dpm++":
        scheduler = _dpm_solver(config, full)
        for t in scheduler.timesteps:
            predicted, _ = split(predict(x, t.expand(b).to(device)).float(), channels)
            x = scheduler.step(predicted, t, x, return_dict=False)[0]
        return x
    schedule = full.respaced(config.steps)
    for step in reversed(range(len(schedule))):
        t = torch.full((b,), int(schedule.timesteps[step]), device=device)
        at = torch.full((b,), step, device=device)
        predicted, v = split(predict(x, t).float(), channels)
        if config.solver == "ddim":
            x = schedule.ddim_step(x, predicted, at)
        else:
            x = schedule.ddpm_step(x, predicted, v, at, noise(step) if step else torch.zeros_like(x))
    return x


def _dpm_solver(config: SampleConfig, schedule: Schedule) -> Any:
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(
        num_train_timesteps=len(schedule),
        trained_betas=schedule.betas.tolist(),
        timestep_spacing="linspace",
        algorithm_type="dpmsolver++",
    )
    scheduler.set_timesteps(config.steps)
    return scheduler


class Guided:
    """A model under classifier-free guidance (arXiv 2207.12598): predict(x, t) -> [b, c or 2c, y, x].

    noise = unconditional + w(t) (conditional - unconditional) on the guided channels; the other channels and the
    variance are the conditional half's, as in the public MDT code.
    """

    def __init__(self, model: nn.Module, labels: Tensor, config: SampleConfig):
        self.model, self.labels, self.config = model, labels, config
        self.channels: int = model.config.in_channels  # type: ignore[union-attr, assignment]
        self.null = torch.full_like(labels, classes_of(model))

    def _predict(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        bf16 = torch.autocast(x.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")
        with bf16:
            return self.model(x, t, class_labels=labels, return_dict=False)[0]

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        if self.config.guidance == 1.0:
            return self._predict(x, t, self.labels)
        both = self._predict(torch.cat([x, x]), torch.cat([t, t]), torch.cat([self.labels, self.null]))
        conditional, unconditional = both.float().chunk(2)
        guided = (
            self.channels if self.config.guided_channels is None else min(self.config.guided_channels, self.channels)
        )
        weight = guidance_weight(self.config, t).view(-1, 1, 1, 1)
        base = unconditional[:, :guided]
        return torch.cat([base + weight * (conditional[:, :guided] - base), conditional[:, guided:]], dim=1)


def guidance_weight(config: SampleConfig, t: Tensor) -> Tensor:
    """w(t) of the original timesteps t[b]: MDT's power-cosine ramp from 1 at T to the scale at 0, or constant."""
    if config.guidance_schedule == "constant":
        return torch.full_like(t, config.guidance, dtype=torch.float32)
    ramp = (1 - torch.cos((1 - t / config.diffusion_steps) ** config.guidance_power * math.pi)) / 2
    return (config.guidance - 1) * ramp + 1


def decoder(config: SampleConfig, device: torch.device) -> Callable[[Tensor], Tensor]:
    """From latents [b,c,y,x] to pixels in [-1, 1]: the VAE's decoder, or nothing where latents are pixels."""
    if config.vae is None:
        return lambda latents: latents
    from diffusers import AutoencoderKL

    try:
        vae: Any = AutoencoderKL.from_pretrained(config.vae)
    except (OSError, ValueError) as error:
        raise UserError(
            f"vae: '{config.vae}' is neither a folder with an AutoencoderKL nor a reachable name"
        ) from error
    vae = vae.to(device).eval()
    return lambda latents: vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]


def device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def draw_grid(model: nn.Module, path: Path, count: int, **options: Any) -> None:
    """Sample `count` images into one png, ten to a row."""
    images, _ = sample(model, count, **options)
    path.parent.mkdir(parents=True, exist_ok=True)
    grid(images, columns=10).save(path)


def batches(config: SampleConfig) -> Iterator[range]:
    """The image numbers of every batch."""
    return (range(i, min(i + config.batch_size, config.count)) for i in range(0, config.count, config.batch_size))
