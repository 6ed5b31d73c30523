"""`dit-shd train CONFIG dry_run=true`: the cost of a run, by count and by one real step. Nothing is written."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from dit_shd.core import places
from dit_shd.core.clock import finished
from dit_shd.core.config import checked
from dit_shd.core.devices import current_device
from dit_shd.core.errors import UserError
from dit_shd.core.launcher import process_count
from dit_shd.core.plugins import Plugin
from dit_shd.distillation.calibration import calibrate
from dit_shd.distillation.distiller import Distiller
from dit_shd.distillation.initialisation import initialise as initialisation
from dit_shd.distillation.losses import LOSSES, Loss
from dit_shd.distillation.teachers import Teachers, role
from dit_shd.models import loading
from dit_shd.models.batch_norms import batch_norms
from dit_shd.models.bfloat16 import in_bfloat16
from dit_shd.models.blocks import recompute
from dit_shd.models.families import FAMILIES, LibraryModel
from dit_shd.models.families.diffusers import described
from dit_shd.models.lora import add_lora
from dit_shd.models.offload import is_offloaded, moved, offload_blocks
from dit_shd.models.quantization import is_quantised, unread
from dit_shd.profiling import meta
from dit_shd.profiling.estimate import PROCESSES, DryRun, MeasuredStep
from dit_shd.profiling.flops import operations_by_step
from dit_shd.profiling.hardware import peak_memory
from dit_shd.profiling.memory import step_memory
from dit_shd.profiling.step import StepShape
from dit_shd.tasks import TASKS, Batch, Task
from dit_shd.training import checks, optim
from dit_shd.training.config import AUTO_SIZE, TrainConfig, filled
from dit_shd.training.dry_sizes import data_sizes, with_sizes
from dit_shd.training.ema import EMA, too_slow
from dit_shd.training.inputs import following

_log = logging.getLogger("dit_shd")


def dry_run(config: TrainConfig) -> DryRun:
    """Count a run, and take one step of it (`estimate.measure`).

    The data need not exist, nor, with `estimate.teacher`, the teacher. Data that do give the student its sizes.

    Args:
        config: The config of the run.

    Raises:
        UserError: A config that cannot work.
    """
    config = following(checked(config, "train"))
    checks.ranges(replace(config, dry_run=False), counting=True)
    before = peak_memory(current_device())
    step = step_shape(config, checks.micro_batch_size(config, process_count()))
    task = step.task
    checks.teaching(config, step.losses)
    checks.passes(task, step.losses)
    keywords = {**data_sizes(config), **task.student_options()}
    teachers, missing = _teachers(config, task, keywords)
    config, assumed = with_sizes(replace(config, student=_student(config)), keywords, teachers)
    student = meta.build(config.student, "student")
    if config.validate_every:
        task.check_evaluation(student, None)
    beginning = _beginning(config, step.losses, student, teachers, missing)
    if config.from_run is not None and not places.is_here(config.from_run, "model"):
        _log.warning("from: %s is not here, and training wants it", config.from_run)
    checks.adapters(config, student, [])
    add_lora(student, config.lora)
    task.check_model("student", student)
    for name, teacher in teachers.items():
        task.check_model(role(name), teacher)
    operations, memory = operations_by_step(step, student, teachers, config.steps), step_memory(step, student, teachers)
    share = min(step.images, max(1, config.batch_size // PROCESSES))
    memory_of_several = memory if share == step.images else step_memory(step_shape(config, share), student, teachers)
    measured, counted = None, None
    if config.estimate.measure:
        _log.info("taking two real steps of one image (estimate.measure=false for none)")
        tried = config
        if current_device().type == "cpu":  # most have no bfloat16 products and take a hundred times as long
            tried = replace(config, precision="no", teacher_precision="no", teacher_offload="no")
        counted = step_memory(step_shape(tried, 1), student, teachers)
        real = {name: _real(tried, name, teachers[name], missing) for name in teachers}
        measured = take_a_step(tried, real, 1, before)
    return DryRun(
        task=task,
        student=student,
        teachers={role(name): teacher for name, teacher in teachers.items()},
        teachers_missing=[config.teachers[name] for name in missing],
        operations_by_step=operations,
        memory=memory,
        memory_of_several=memory_of_several,
        counted=counted,
        measured=measured,
        steps=config.steps,
        batch_size=config.batch_size,
        precision=config.precision,
        peak_tflops=config.peak_tflops,
        assumed=config.estimate,
        sizes=[*assumed, *_tried(config, step.images)],
        warning=too_slow(config.ema_rates, config.steps, config.ema_warmup) or None,
        beginning=beginning,
        fsdp2_refusal=checks.fsdp2_refusal(config),
        learns_guidance=any(_is_guided(loss) for loss in step.losses),
    )


def _is_guided(loss: Loss) -> bool:
    """Whether a loss takes the teacher's prediction with guidance."""
    guidance = getattr(loss, "guidance", None)
    return guidance is not None and not guidance.changes_nothing


def _tried(config: TrainConfig, images: int) -> list[str]:
    """That a run will try how many images a forward takes, in words."""
    if config.micro_batch_size != AUTO_SIZE:
        return []
    return [f"micro_batch_size=auto: counted with {images} images in a forward; a run takes as many as fit its device."]


def _beginning(
    config: TrainConfig,
    losses: Sequence[Loss],
    student: nn.Module,
    teachers: Mapping[str, nn.Module],
    missing: Mapping[str, Plugin],
) -> list[str]:
    """What the student begins with, in words; nothing where that needs a teacher that does not exist yet, or data."""
    name, teacher = next(iter(teachers.items()), ("", None))
    initialisation.check(config.initialisation, losses, student, teacher)
    lines = list(initialisation.remarks(config.initialisation, losses, student, teacher))
    if teacher is None or name in missing:
        return lines
    plan = initialisation.planned(config.initialisation, losses, student, teacher)
    return lines if plan is None else [*lines, *plan.lines()]


def _real(config: TrainConfig, name: str, loaded: nn.Module, missing: Mapping[str, Plugin]) -> nn.Module:
    """A teacher that runs; in fewer bits it is read again."""
    if name in missing:
        return FAMILIES.build(missing[name])
    quantised = is_quantised(config.teacher_precision)
    return loading.load(config.teachers[name], config.teacher_precision, current_device()) if quantised else loaded


def step_shape(config: TrainConfig, images: int) -> StepShape:
    """A step of the run in micro batches of `images`."""
    task = TASKS.build(config.task, "task")
    task.expect(config.data)
    return StepShape(
        task=task,
        losses=[LOSSES.build(p, f"losses.{i}") for i, p in enumerate(config.losses)],
        images=images,
        build_optimizer=lambda trained: optim.build(config.optimizer, [("", p) for p in trained]),
        optimizer=config.optimizer.name,
        averages=len(config.ema_rates),
        recompute=config.gradient_checkpointing,
        precision=config.precision,
        teacher_precision=config.teacher_precision,
        teacher_offload=config.teacher_offload,
    )


def _teachers(
    config: TrainConfig, task: Task[Any], keywords: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Plugin]]:
    """The teachers, with their weights where those exist; and what the others are, by estimate.teacher."""
    teachers: dict[str, Any] = {}
    missing: dict[str, Plugin] = {}
    for name, source in config.teachers.items():
        stand_in = _stand_in(config, name)
        if stand_in is not None and not places.is_here(source, "model"):
            missing[name] = filled(stand_in, keywords)
            teachers[name] = meta.build(missing[name], "estimate.teacher")
            _check_read(config, name, teachers[name])
            continue
        try:
            teachers[name] = loading.load(source)
        except UserError as error:
            hint = "to count without it, say what it will be: estimate.teacher='{name: mdt, size: B/2}'"
            raise UserError(f"{role(name)}: {error}; {hint}") from error
        task.check_model(source, teachers[name])
        _check_read(config, name, teachers[name])
    return teachers, missing


def _check_read(config: TrainConfig, name: str, teacher: nn.Module) -> None:
    """Refuse a teacher that a run could not read in the bits that are wanted."""
    if is_quantised(config.teacher_precision) and isinstance(teacher, LibraryModel):
        raise unread(config.teachers[name], config.teacher_precision, f"one of {teacher.library}")


def _student(config: TrainConfig) -> Plugin:
    """The student; one like a teacher that is not here is like what is counted in its place."""
    student = config.student
    for name, source in config.teachers.items():
        stand_in = _stand_in(config, name)
        if stand_in is None or stand_in.name != "diffusers" or places.is_here(source, "model"):
            continue
        if student.options.get("like") == source:
            return Plugin("diffusers", described(stand_in.options, student.options.get("config") or {}))
    return student


def _stand_in(config: TrainConfig, name: str) -> Plugin | None:
    """The model that a teacher is counted as while it does not exist: estimate.teacher, one or by name."""
    stand_in = config.estimate.teacher
    return stand_in.get(name) if isinstance(stand_in, dict) else stand_in


def take_a_step(config: TrainConfig, teachers: Teachers, images: int, before: int) -> MeasuredStep:
    """Take two steps on noise: in the first one the optimizer has no states.

    Args:
        config: The config of the run.
        teachers: With weights.
        images: The number of images of the step.
        before: Value of peak_memory() of the time before the teachers were loaded.
    """
    device = current_device()
    shape = step_shape(config, images)
    task, losses = shape.task, shape.losses
    for i, loss in enumerate(losses):
        if loss.fields:
            raise UserError(
                f"losses.{i}: reads {', '.join(sorted(loss.fields))} of the data, which a dry run lacks; say "
                "estimate.measure=false, or leave it out of the dry run"
            )
    torch.manual_seed(config.seed)
    student = FAMILIES.build(config.student, "student").train()
    add_lora(student, config.lora, config.seed)
    if config.gradient_checkpointing:
        recompute(student)
    distiller = Distiller(task, student, losses).to(device)
    averages = EMA(student, config.ema_rates, config.ema_warmup)
    for teacher in teachers.values():
        teacher = in_bfloat16(teacher) if config.teacher_precision == "bf16" else teacher
        moved(teacher.eval().requires_grad_(False), device)
        if config.teacher_offload == "blocks" and not is_offloaded(teacher):
            offload_blocks(teacher, device)
    for norm in batch_norms(student).values():  # of a single image they have no variance
        norm.eval()
    distiller.build(task.example(student, 1, device), teachers)
    optimizer = optim.build(config.optimizer, [x for x in distiller.named_parameters() if x[1].requires_grad])
    calibrate(distiller, teachers, [task.example(student, images, device)])
    seconds = 0.0
    for number in range(2):
        start = finished(device)
        _step(config, distiller, teachers, task.example(student, images, device))
        nn.utils.clip_grad_norm_(distiller.parameters(), config.optimizer.clip or float("inf"))
        optimizer.step()
        optimizer.zero_grad()
        averages.step(student, number)
        seconds = finished(device) - start
    return MeasuredStep(device.type, images, seconds, peak_memory(device) - before)


def _step(config: TrainConfig, distiller: Distiller, teachers: Teachers, batches: Sequence[Batch]) -> None:
    for batch in batches:
        low = torch.float16 if config.precision == "fp16" else torch.bfloat16
        with torch.autocast(batch.indices.device.type, low, enabled=config.precision != "no"):
            loss, _ = distiller(batch, teachers)
        loss.backward()
