"""Images from a model: DDPM (or DDIM, DPM-Solver++) with classifier-free guidance.

    model = dit_shd.models.load("runs/student")
    images, labels = dit_shd.sampler.sample(model, count=16, steps=250, guidance=3.8)

Image i depends on the seed and on i only: its noise is a stream of its own, whatever the batch or the process.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from dit_shd import models, randomness
from dit_shd.ahead import ahead
from dit_shd.config import make, option
from dit_shd.decoder import Decoder, finished
from dit_shd.diffusion import Schedule, split
from dit_shd.distiller import classes_of, known_classes
from dit_shd.errors import UserError
from dit_shd.guidance import Guided
from dit_shd.latent_origin import decoder, of_source
from dit_shd.models.mdt import kept_biases
from dit_shd.places import MODEL, Place


@dataclass(frozen=True)
class SampleConfig:
    """What to sample and how; the defaults are MDT's protocol for reported figures."""

    run: Place = option("", MODEL)
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
    guidance_tolerance: float = option(
        1e-3,
        "where |weight - 1| is within this, no guidance and half of the network's work; 0 for guidance everywhere",
    )
    guided_channels: int | None = option(3, "noise channels that are guided (the public code's 3); empty for all")
    labels: Literal["random", "balanced"] = option(
        "random", "class of image i: drawn, or in turn; of the classes that the training saw"
    )
    rounding: Literal["floor", "nearest"] = option("floor", "to uint8: floor (MDT) or nearest (DiT); it moves FID")
    seed: int = option(0, "image i is a function of the seed and i")
    batch_size: int = option(64, "images in one batch of one process")
    diffusion_steps: int = option(1000, "steps of the schedule the model was trained with; a run folder knows its own")
    vae: Place | None = option(
        "auto",
        "autoencoder that decodes: auto (the run's, none for pixels), a folder, hub:OWNER/NAME, pixels, or null to "
        "keep latents as they are (float32 [n,c,y,x])",
    )
    precision: Literal["no", "bf16"] = option("no", "autocast of the network")
    compile: bool = option(False, "torch.compile the network (needs a compiler; minutes at first, then faster)")
    out: Path | None = option(None, "the npz; empty: samples_<count>_seed<seed>.npz in the run folder")
    force: bool = option(False, "replace an npz that is there already")

    def check(self) -> None:
        for key in ("count", "batch_size"):
            if getattr(self, key) < 1:
                raise UserError(f"{key}: wanted 1 or more, found {getattr(self, key)}")
        if self.count > 10**8:
            raise UserError(f"count: wanted up to 10^8, found {self.count}")
        Schedule.linear(self.diffusion_steps)  # refuses what is no schedule
        if not 1 <= self.steps <= self.diffusion_steps:
            raise UserError(f"steps: wanted 1 to {self.diffusion_steps}, found {self.steps}")
        for key in ("guidance_tolerance", "guidance_power"):
            if getattr(self, key) < 0:
                raise UserError(f"{key}: wanted 0 or more, found {getattr(self, key)}")
        if self.guided_channels is not None and self.guided_channels < 0:
            raise UserError(f"guided_channels: wanted 0 or more, found {self.guided_channels}")


def sample(
    model: nn.Module | str | Path, count: int, labels: Sequence[int] | str = "random", **options: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [count,y,x,c] (with vae=None latents float32 [count,c,y,x]) and their labels int64 [count].

    What was trained on latents is decoded by the autoencoder of the run that `models.load` took the model from.

    Args:
        model: itself, or what names one, as `dit-shd sample` takes it.
        labels: the class of each image, or how to choose it (random or balanced).
        options: any key of SampleConfig (steps, guidance, seed, batch_size, vae, ...).
    """
    policy = labels if isinstance(labels, str) else "random"
    named = {"run": str(model)} if isinstance(model, (str, Path)) else {}
    config = make(SampleConfig, {**options, "count": count, "labels": policy, **named}, "sample")
    if isinstance(model, (str, Path)):
        config, model = models.of_run(config), models.load_conditional(model).eval()
        if torch.accelerator.is_available():
            model.to(torch.accelerator.current_accelerator())  # type: ignore[arg-type]
    elif not isinstance(model, nn.Module):
        raise UserError(f"model: wanted a model or the name of one, found {type(model).__name__}")
    reason = models.why_not_conditional(model)
    if reason is not None:
        raise UserError(f"model: {reason}")
    config.check()
    known = known_classes(model)
    plan = label_plan(config, known, range(count)) if isinstance(labels, str) else np.asarray(labels, int)
    if plan.shape != (count,):
        raise UserError(f"labels: wanted {count}, one for each image, found {plan.shape}")
    if plan.min() < 0 or plan.max() >= classes_of(model):
        raise UserError(f"labels: wanted classes 0 to {classes_of(model) - 1}, found {plan.min()} to {plan.max()}")
    unseen = sorted(set(plan.tolist()) - set(known))
    if unseen:
        raise UserError(f"labels: the model's training never saw class {unseen[0]}; it saw {_shortly(known)}")
    decode, network = load_decoder(config, model), prepared(model, config)
    parts = [draw(network, config, indices, plan[indices], decode) for indices in batches(config)]
    return np.concatenate(parts), plan


def batches(config: SampleConfig) -> Iterator[range]:
    """The image numbers of every batch: the same cuts whatever the number of processes."""
    return (range(i, min(i + config.batch_size, config.count)) for i in range(0, config.count, config.batch_size))


def label_plan(config: SampleConfig, classes: Sequence[int], indices: Sequence[int]) -> np.ndarray:
    """The classes of some images among those given, int64 [b]: a function of the seed and the image's number."""
    if config.labels == "balanced":
        places = np.asarray(indices, dtype=np.int64) % len(classes)
    else:
        places = [int(randomness.stream(config.seed, "sample label", 0, i).integers(len(classes))) for i in indices]
    return np.asarray(classes, dtype=np.int64)[places]


def _shortly(classes: Sequence[int]) -> str:
    return ", ".join(map(str, classes[:10])) + (", ..." if len(classes) > 10 else "")


def prepared(model: nn.Module, config: SampleConfig) -> nn.Module:
    """The model as `draw` wants it: compiled, if so configured, once for all batches."""
    return torch.compile(model, dynamic=False) if config.compile else model  # type: ignore[return-value]


def load_decoder(config: SampleConfig, model: nn.Module) -> Decoder:
    """What turns the model's latents into pixels, by what the run or folder that it is from tells of them."""
    own: Any = model.config
    origin = of_source(config.run or str(own.get("_name_or_path") or ""), own.in_channels)
    return decoder(config.vae, origin, own.in_channels, device_of(model))


@torch.no_grad()
def draw(
    model: nn.Module,
    config: SampleConfig,
    indices: Sequence[int],
    labels: np.ndarray,
    decode: Callable[[Tensor], Tensor],
    on_step: Callable[[float], None] = lambda images: None,
) -> np.ndarray:
    """The images with some numbers and their labels [b]: uint8 [b,y,x,c], or what the decoder keeps.

    Args:
        on_step: told after each solver step how much of the work that was, in images.
    """
    device, own = device_of(model), model.config
    shape: tuple[int, ...] = (own.in_channels, own.sample_size, own.sample_size)  # type: ignore[union-attr, assignment]
    guided = Guided(model, torch.from_numpy(labels).to(device), config)

    sound: list[tuple[int, Tensor, Tensor]] = []

    def predict(x: Tensor, timestep: int) -> Tensor:
        found = guided(x, timestep)
        sound.append((timestep, torch.isfinite(x).all(), torch.isfinite(found).all()))
        on_step(len(x) / config.steps)
        return found

    was_training = model.training
    model.eval()
    try:
        with kept_biases(model, torch.bfloat16 if config.precision == "bf16" else torch.float32):
            latents = denoise(predict, config, indices, shape, device)
    except RuntimeError as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        raise UserError(f"compile=true: torch.compile failed ({' '.join(str(error).split())[:160]})") from error
    finally:
        model.train(was_training)
    where = f"sampling images {indices[0]}..{indices[-1]}"
    if not bool(torch.isfinite(latents).all()):
        raise UserError(f"{where}: {_culprit(config, sound)} is not finite (NaN or infinity)")
    pixels = decode(latents).float()
    if not bool(torch.isfinite(pixels).all()):
        raise UserError(f"{where}: the autoencoder's output is not finite (NaN or infinity)")
    return finished(decode, pixels, config.rounding)


def _culprit(config: SampleConfig, sound: Sequence[tuple[int, Tensor, Tensor]]) -> str:
    """Who first gave what is not finite. sound: of each timestep, whether the model's input and its output were."""
    guided = "" if config.guidance == 1 else f" under guidance={config.guidance:g}"
    for timestep, given, found in sound:
        if not given:
            break
        if not found:
            return f"the model's output{guided} at timestep {timestep}"
    return f"what solver={config.solver} made in {config.steps} steps of finite model outputs{guided}"


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
        noise = randomness.normal(config.seed, "sample", step, indices, shape)
        return noise.pin_memory() if device.type == "cuda" else noise

    for noise in ahead(one, steps):
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


def device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
