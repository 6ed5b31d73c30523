"""`dit-shd train CONFIG dry_run=true`: what a run would take, by count and by one real step. Nothing is written."""

import logging
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from dit_shd.core import places
from dit_shd.core.config import checked
from dit_shd.core.errors import UserError
from dit_shd.distillation.calibration import calibrate
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
from dit_shd.tasks import TASKS, Batch, Task
from dit_shd.training import checks, optim
from dit_shd.training.config import TrainConfig, filled
from dit_shd.training.ema import EMA, too_slow

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
    step = step_shape(config, images)
    task = step.task
    config = _filled(config, task)
    checks.teaching(config, step.losses)
    checks.passes(task, step.losses)
    student = meta.build(config.student, "student")
    if config.validate_every:
        task.check_evaluation(student, None)
    teacher, there = _teacher(config)
    for role, model in (("student", student), ("teacher", teacher)):
        if model is not None:
            task.check_model(role, model)
    operations, memory = step_operations(step, student, teacher), step_memory(step, student, teacher)
    measured, counted = None, None
    if config.estimate.measure:
        _log.info("taking two real steps of one image (estimate.measure=false for none)")
        tried = config
        if current_device().type == "cpu":  # most have no bfloat16 products and take a hundred times as long
            tried = replace(config, precision="no", teacher_precision="no")
        counted = step_memory(step_shape(tried, 1), student, teacher)
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


def _filled(config: TrainConfig, task: Task[Any]) -> TrainConfig:
    """The config whose student, and whose stand-in for a teacher, predict what the task wants."""
    options, stand_in = task.student_options(), config.estimate.teacher
    if stand_in is not None:
        config = replace(config, estimate=replace(config.estimate, teacher=filled(stand_in, options)))
    return replace(config, student=filled(config.student, options))


def step_shape(config: TrainConfig, images: int) -> StepShape:
    """A step of the run in micro batches of `images`."""
    return StepShape(
        task=TASKS.build(config.task, "task"),
        losses=[LOSSES.build(p, f"losses.{i}") for i, p in enumerate(config.losses)],
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
    task = TASKS.build(config.task, "task")
    distiller = Distiller(task, student, losses).to(device)
    optimizer = optim.build(config.optimizer, [p for p in distiller.parameters() if p.requires_grad])
    averages = EMA(student, config.ema_rates, config.ema_warmup)
    if teacher is not None:
        teacher = teacher.bfloat16() if config.teacher_precision == "bf16" else teacher
        teacher.eval().requires_grad_(False).to(device)
        calibrate(distiller, teacher, [task.example(student, images, device)])
    seconds = 0.0
    for number in range(2):
        start = time.perf_counter()
        _step(config, distiller, teacher, task.example(student, images, device))
        nn.utils.clip_grad_norm_(distiller.parameters(), config.optimizer.clip or float("inf"))
        optimizer.step()
        optimizer.zero_grad()
        averages.step(student, number)
        _finish(device)
        seconds = time.perf_counter() - start
    return Measurement(device.type, images, seconds, peak_memory(device) - before)


def _step(config: TrainConfig, distiller: Distiller, teacher: Any, batches: Sequence[Batch]) -> None:
    for batch in batches:
        low = torch.float16 if config.precision == "fp16" else torch.bfloat16
        with torch.autocast(batch.indices.device.type, low, enabled=config.precision != "no"):
            loss, _ = distiller(batch, teacher)
        loss.backward()


def _finish(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
