"""`dit-shd train CONFIG dry_run=true`: what a run would take, by count and by one real step. Nothing is written."""

import logging
import os
import time
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dit_shd.core import places
from dit_shd.core.config import checked
from dit_shd.core.errors import UserError
from dit_shd.diffusion.denoiser import Denoiser
from dit_shd.diffusion.schedule import Schedule
from dit_shd.distillation.distiller import Distiller
from dit_shd.distillation.losses import LOSSES
from dit_shd.models import loading
from dit_shd.models.families import FAMILIES
from dit_shd.profiling import meta
from dit_shd.profiling.estimate import DryRun, Measurement
from dit_shd.profiling.flops import step_operations
from dit_shd.profiling.hardware import current_device, peak_memory
from dit_shd.profiling.memory import step_memory
from dit_shd.profiling.step import StepShape
from dit_shd.tasks.diffusion import Batch, PassName, kept_tokens
from dit_shd.training import checks, optim
from dit_shd.training.config import TrainConfig
from dit_shd.training.ema import Averages, too_slow

_log = logging.getLogger("dit_shd")


def dry_run(config: TrainConfig) -> DryRun:
    """Count a run, and take one step of it (`estimate.measure`).

    Neither the data nor, with `estimate.teacher`, the teacher need be there.

    Raises:
        UserError: a config that cannot work.
    """
    config = checked(config, "train")
    checks.ranges(replace(config, dry_run=False))
    before = peak_memory(current_device())
    images = checks.micro_batch_size(config, int(os.environ.get("WORLD_SIZE", "1")))
    checks.teaching(config, [LOSSES.build(p, f"losses.{i}") for i, p in enumerate(config.losses)])
    student = meta.build(config.student, "student")
    teacher, there = _teacher(config)
    for role, model in (("student", student), ("teacher", teacher)):
        if model is not None:
            checks.masked_pass(config, role, model)
    step = step_shape(config, student, images)
    operations, memory = step_operations(step, student, teacher), step_memory(step, student, teacher)
    measured, counted = None, None
    if config.estimate.measure:
        _log.info("taking two real steps of one image (estimate.measure=false for none)")
        tried = config
        if current_device().type == "cpu":  # most have no bfloat16 products and take a hundred times as long
            tried = replace(config, precision="no", teacher_precision="no")
        counted = step_memory(step_shape(tried, student, 1), student, teacher)
        real = teacher if there or config.estimate.teacher is None else FAMILIES.build(config.estimate.teacher)
        measured = take_a_step(tried, real, 1, before)
    return DryRun(
        student=student,
        teacher=teacher,
        teacher_missing=config.teacher if teacher is not None and not there else None,
        operations=operations,
        memory=memory,
        counted=counted,
        measured=measured,
        steps=config.steps,
        batch_size=config.batch_size,
        precision=config.precision,
        peak_tflops=config.peak_tflops,
        assumed=config.estimate,
        warning=too_slow(config.ema_rates, config.steps, config.ema_warmup) or None,
    )


def step_shape(config: TrainConfig, student: Any, images: int) -> StepShape:
    """A step of the run in micro batches of `images`."""
    return StepShape(
        losses=[LOSSES.build(p, f"losses.{i}") for i, p in enumerate(config.losses)],
        passes=kept_tokens(config.mask_ratio, Denoiser(student).tokens),
        images=images,
        build_optimizer=partial(optim.build, config.optimizer),
        optimizer=config.optimizer.name,
        averages=len(config.ema_rates),
        recompute=config.gradient_checkpointing,
        precision=config.precision,
        teacher_precision=config.teacher_precision,
    )


def _teacher(config: TrainConfig) -> tuple[Any, bool]:
    """The teacher, and whether it is the real one: with its weights if it is there, else as estimate.teacher says."""
    source, stand_in = config.teacher, config.estimate.teacher
    if source is None:
        return None, False
    if stand_in is not None and not places.is_here(source, "model"):
        return meta.build(stand_in, "estimate.teacher"), False
    try:
        return loading.load_conditional(source), True
    except UserError as error:
        hint = "to count without it, say what it will be: estimate.teacher='{name: mdt, size: B/2}'"
        raise UserError(f"teacher: {error}; {hint}") from error


def take_a_step(config: TrainConfig, teacher: Any, images: int, before: int) -> Measurement:
    """Two steps on noise: the first finds out in which order the teacher's layers run, and fills the states.

    Args:
        teacher: with weights, or None. before: peak_memory() of the time before the teacher was loaded.
    """
    device = current_device()
    torch.manual_seed(config.seed)
    student = FAMILIES.build(config.student, "student")
    if config.gradient_checkpointing:
        student.enable_gradient_checkpointing()
    losses = [LOSSES.build(p, f"losses.{i}") for i, p in enumerate(config.losses)]
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


def _step(config: TrainConfig, distiller: Distiller, teacher: Any, batches: dict[PassName, Batch]) -> None:
    for name, batch in batches.items():
        kind = batch.x_0.device.type
        low = torch.float16 if config.precision == "fp16" else torch.bfloat16
        with torch.autocast(kind, low, enabled=config.precision != "no"):
            loss, _ = distiller(batch, name, teacher)
        loss.backward()


def _batches(
    config: TrainConfig, student: Any, schedule: Schedule, images: int, device: torch.device
) -> dict[PassName, Batch]:
    own = student.config
    shape = (images, own.in_channels, own.sample_size, own.sample_size)
    t = torch.randint(len(schedule), (images,))
    found: dict[PassName, Batch] = {}
    for name, kept in kept_tokens(config.mask_ratio, student.tokens).items():
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
