"""One real step at a small batch: seconds and the memory it took, on this machine. Nothing is written."""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dit_shd.diffusion.schedule import Schedule
from dit_shd.distillation.distiller import Distiller
from dit_shd.profiling.flops import kept_tokens
from dit_shd.profiling.hardware import current_device, peak_memory
from dit_shd.tasks.diffusion import Batch, PassName
from dit_shd.training import optim
from dit_shd.training.ema import Averages

if TYPE_CHECKING:
    from dit_shd.training.config import TrainConfig


@dataclass(frozen=True)
class Measurement:
    device: str
    images: int
    seconds: float
    """Of the second of two steps."""
    peak: int
    """Bytes: of a GPU what was allocated, else what this process's highest resident memory grew by."""


def take_a_step(config: "TrainConfig", teacher: Any, images: int, before: int) -> Measurement:
    """Two steps on noise: the first finds out in which order the teacher's layers run, and fills the states.

    Args:
        teacher: with weights, or None. before: peak_memory() of the time before the teacher was loaded.
    """
    device = current_device()
    torch.manual_seed(config.seed)
    student = config.student.build("models", "student")
    if config.gradient_checkpointing:
        student.enable_gradient_checkpointing()
    losses = [p.build("losses", f"losses.{i}") for i, p in enumerate(config.losses)]
    schedule = Schedule.linear(config.diffusion_steps)
    distiller = Distiller(student, losses, schedule, config.min_snr_gamma).to(device)
    optimizer = optim.build(config.optimizer, [p for p in distiller.parameters() if p.requires_grad])
    averages = Averages(student, config.ema_rates, config.ema_warmup)
    if teacher is not None:
        teacher = teacher.bfloat16() if config.teacher_precision == "bf16" else teacher
        teacher.eval().requires_grad_(False).to(device)
    seconds = 0.0
    for number in range(2):
        start = time.perf_counter()
        _step(config, distiller, teacher, _batches(config, student, schedule, images, device))
        nn.utils.clip_grad_norm_(distiller.parameters(), config.optimizer.clip or float("inf"))
        optimizer.step()
        optimizer.zero_grad()
        averages.step(student, number)
        _finish(device)
        seconds = time.perf_counter() - start
    return Measurement(device.type, images, seconds, peak_memory(device) - before)


def _step(config: "TrainConfig", distiller: Distiller, teacher: Any, batches: dict[PassName, Batch]) -> None:
    for name, batch in batches.items():
        kind = batch.x_0.device.type
        low = torch.float16 if config.precision == "fp16" else torch.bfloat16
        with torch.autocast(kind, low, enabled=config.precision != "no"):
            loss, _ = distiller(batch, name, teacher)
        loss.backward()


def _batches(
    config: "TrainConfig", student: Any, schedule: Schedule, images: int, device: torch.device
) -> dict[PassName, Batch]:
    own = student.config
    shape = (images, own.in_channels, own.sample_size, own.sample_size)
    t = torch.randint(len(schedule), (images,))
    found: dict[PassName, Batch] = {}
    for name, kept in kept_tokens(config, student).items():
        x_0, noise = torch.randn(shape), torch.randn(shape)
        keep = None if kept is None else _some(student.tokens, kept, images)
        x_t, labels = schedule.add_noise(x_0, noise, t), torch.zeros(images, dtype=torch.long)
        found[name] = Batch(x_0, noise, x_t, t, labels, keep, labels).to(device)
    return found


def _some(tokens: int, kept: int, images: int) -> Tensor:
    return torch.stack([torch.randperm(tokens)[:kept].sort().values for _ in range(images)])


def _finish(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
