"""How a run comes to be: named steps in order, each of which returns what it made.

Until open_folder nothing is written: what cannot work is refused before that.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dit_shd.core.config import checked
from dit_shd.core.distributed import run_on_main
from dit_shd.core.dtensor import is_sharded
from dit_shd.core.errors import UserError
from dit_shd.core.files import write_text
from dit_shd.core.yaml_files import dump
from dit_shd.data.datasets import DATASETS
from dit_shd.data.latent_origin import Kept, before_training
from dit_shd.distillation import calibration
from dit_shd.distillation.distiller import Distiller
from dit_shd.distillation.initialisation import initialise as initialisation
from dit_shd.distillation.losses import LOSSES, Loss
from dit_shd.distillation.teachers import Teachers, role
from dit_shd.models import loading
from dit_shd.models.families import FAMILIES
from dit_shd.profiling.flops import step_operations
from dit_shd.profiling.hardware import known_peak
from dit_shd.profiling.throughput import Throughput
from dit_shd.tasks import TASKS, Task
from dit_shd.training import calibration_file, checks, fsdp, nan_guard, optim
from dit_shd.training.accelerator import make_accelerator
from dit_shd.training.batches import Batches, Passes
from dit_shd.training.compilation import compile_blocks
from dit_shd.training.config import TrainConfig, completed, may_change, resolved, sized
from dit_shd.training.dry_run import step_shape
from dit_shd.training.ema import EMA, too_slow
from dit_shd.training.run import Run
from dit_shd.training.run_folder import RunFolder
from dit_shd.training.services import Services
from dit_shd.training.state import TrainState
from dit_shd.training.teacher_check import check_teachers
from dit_shd.training.tracker import Tracker

if TYPE_CHECKING:
    from accelerate import Accelerator

INITIALISATION_FILE = "initialisation.json"
_log = logging.getLogger("dit_shd")


@dataclass(frozen=True, eq=False)
class Parts:
    """What a config names, built."""

    config: TrainConfig
    """With every default written out, and what of the student follows from the data."""
    task: Task[Any]
    student: nn.Module
    losses: Sequence[Loss]
    teachers: Teachers
    kept: Kept
    """The autoencoder of the data's latents."""


def build(config: TrainConfig) -> Run:
    """Take all steps.

    Args:
        config: Of the run.

    Raises:
        UserError: A config that cannot work.
    """
    parts = models_and_task(config)
    config, task, teachers = parts.config, parts.task, parts.teachers
    check(parts)
    distiller = Distiller(task, parts.student, parts.losses, not config.compile and config.sharding == "no")
    first_sample(config, distiller, teachers)
    accelerator, batches = join(config, distiller)
    if accelerator.is_main_process:
        warn(parts)
    check_teachers(config, task, teachers, accelerator)
    folder, tracker = open_folder(parts, accelerator)
    initialise(config, distiller, teachers, batches, folder, accelerator)
    place(config, distiller, teachers, accelerator)
    calibrate(distiller, teachers, batches, folder, accelerator)
    prepared, state = prepare(config, distiller, accelerator)
    meter = throughput(config, distiller.student, teachers, batches, accelerator)
    services = Services.of(config, task, state, folder, tracker, meter)
    return Run(
        config=config,
        task=task,
        accelerator=accelerator,
        folder=folder,
        distiller=prepared,
        teachers=teachers,
        state=state,
        batches=batches,
        services=services,
        first_step=services.resume(),
        decodes=parts.kept.origin is None or parts.kept.autoencoder is not None,
    )


def models_and_task(config: TrainConfig) -> Parts:
    """Everything that the config names, built or loaded."""
    config = checked(config, "train")
    checks.ranges(config)
    config = resolved(config)
    torch.manual_seed(config.seed)
    task, dataset = TASKS.build(config.task, "task"), DATASETS.build(config.data, "data")
    task.check_data(dataset)
    config = sized(config, {**dataset.sizes, **task.student_options()})
    student = FAMILIES.build(config.student, "student")
    losses = [LOSSES.build(plugin, f"losses.{i}") for i, plugin in enumerate(config.losses)]
    checks.teaching(config, losses)
    teachers = load_teachers(config, task)
    task.use(dataset, student)
    latents = "latents" in task.needs
    kept = before_training(config.vae, dataset.origin, dataset.shape[0], config.run) if latents else Kept(None)
    return Parts(config, task, student, losses, teachers, kept)


def load_teachers(config: TrainConfig, task: Task[Any]) -> dict[str, nn.Module]:
    """The frozen teachers by name, in the precision that the config says.

    Raises:
        UserError: One is not to be had, or cannot teach the task.
    """
    teachers: dict[str, nn.Module] = {}
    for name, source in config.teachers.items():
        teacher = loading.load(source).eval().requires_grad_(False)
        task.check_model(source, teacher)
        teachers[name] = teacher.bfloat16() if config.teacher_precision == "bf16" else teacher
    return teachers


def check(parts: Parts) -> None:
    """Task, data, losses, student and teachers must agree.

    Raises:
        UserError: They do not.
    """
    config, task = parts.config, parts.task
    checks.passes(task, parts.losses)
    checks.fields(task, parts.losses)
    models = {"student": parts.student, **{role(name): teacher for name, teacher in parts.teachers.items()}}
    for who, model in models.items():
        task.check(who, model)
        checks.finite(who, model)
    teacher = next(iter(parts.teachers.values()), None)
    initialisation.check(config.initialisation, parts.losses, parts.student, teacher)
    if config.validate_every:
        task.check_evaluation(parts.student, parts.kept)


def first_sample(config: TrainConfig, distiller: Distiller, teachers: Teachers) -> None:
    """Run student and teachers on one sample: what does not fit together is found before anything is written.

    Raises:
        UserError: They do not fit, or give numbers that are not finite.
    """
    if not teachers:
        return
    sample = Batches(distiller.task, config.seed, config.batch_size, 1, fields=fields_of(distiller)).draw(0, range(1))
    calibration.calibrate(distiller, teachers, [sample])
    bad = nan_guard.first_non_finite(distiller, teachers, sample)
    if bad is not None:
        raise UserError(f"the first sample: teacher and student give NaN or infinity, first in {bad}")


def join(config: TrainConfig, distiller: Distiller) -> tuple["Accelerator", Batches]:
    """The processes and devices of the run, and how the processes divide its batches."""
    accelerator = make_accelerator(config, distiller.task)
    size = checks.micro_batch_size(config, accelerator.num_processes)
    place = accelerator.num_processes, accelerator.process_index
    return accelerator, Batches(
        distiller.task, config.seed, config.batch_size, size, *place, fields=fields_of(distiller)
    )


def fields_of(distiller: Distiller) -> frozenset[str]:
    """The fields of the dataset that losses read beside what the task draws."""
    return frozenset[str]().union(*(loss.fields for _, loss in distiller.named_losses()))


def warn(parts: Parts) -> None:
    """Say what is allowed and hardly meant."""
    config = parts.config
    slow = too_slow(config.ema_rates, config.steps, config.ema_warmup)
    for line in (*([slow] if slow else []), *parts.task.remarks(parts.student)):
        _log.warning("%s", line)


def open_folder(parts: Parts, accelerator: "Accelerator") -> tuple[RunFolder, Tracker]:
    """The run folder, locked, and the tracker: the first things that are written."""
    config, task = parts.config, parts.task
    folder = RunFolder.open(config.run, dump(config), may_change(task), completed)
    run_on_main(lambda: parts.kept.write(config.run))
    return folder, Tracker(config, folder, accelerator)


def initialise(
    config: TrainConfig,
    distiller: Distiller,
    teachers: Teachers,
    batches: Batches,
    folder: RunFolder,
    accelerator: "Accelerator",
) -> None:
    """Give a new run's student its first weights from the first teacher; a resumed run's are left alone.

    The main process works them out, all others get the same. The plan is kept and logged.
    """
    options, device = config.initialisation, accelerator.device
    if options.weights == "random" or folder.newest is not None:
        return
    first, teacher = next(iter(teachers.items()))
    for model in (distiller.student, *teachers.values()):
        model.to(device)
    shd = initialisation.shd_of(loss for _, loss in distiller.named_losses() if loss.teacher in (None, first))

    def begin() -> None:
        if shd.calibration:
            calibration.calibrate(distiller, teachers, moved(batches.first_steps(calibrations(distiller)), device))
        drawn = initialisation.moment_batches(distiller.task, config.seed, config.batch_size, options.calibration)
        moments = [batch.to(device) for batch in drawn]
        plan = initialisation.initialise(distiller.task, distiller.student, teacher, moments, options, shd)
        write_text(folder.path / INITIALISATION_FILE, plan.text())
        for line in plan.lines():
            _log.info("initialisation %s", line)

    run_on_main(begin)
    if accelerator.num_processes > 1:
        for tensor in distiller.student.state_dict().values():
            torch.distributed.broadcast(tensor, 0)


def place(config: TrainConfig, distiller: Distiller, teachers: Teachers, accelerator: "Accelerator") -> None:
    """Bring the models to their device, the teachers in slices if the run is sharded, with compiled blocks."""
    if config.gradient_checkpointing:
        distiller.student.enable_gradient_checkpointing()  # type: ignore[operator]
    if config.compile:
        compile_blocks(distiller.student, *teachers.values())
    distiller.to(accelerator.device)
    for teacher in teachers.values():
        teacher.to(accelerator.device)
        if config.sharding == "fsdp2":
            fsdp.shard(teacher, teacher, accelerator.device, frozen=True)


def calibrate(
    distiller: Distiller, teachers: Teachers, batches: Batches, folder: RunFolder, accelerator: "Accelerator"
) -> None:
    """Calibrate the losses of a new run, or restore what the run found before.

    The main process calibrates and writes; all read, so that all work with the same. With a sharded teacher all
    calibrate.
    """
    losses = {name: loss for name, loss in distiller.named_losses() if loss.calibration}
    if not losses or not teachers:
        return
    new = not (folder.path / calibration_file.FILE).exists()
    accelerator.wait_for_everyone()
    if new and (accelerator.is_main_process or any(map(is_sharded, teachers.values()))):
        steps = moved(batches.first_steps(calibrations(distiller)), accelerator.device)
        found = calibration.calibrate(distiller, teachers, steps)
        if accelerator.is_main_process:
            calibration_file.write(folder.path, found)
    accelerator.wait_for_everyone()
    calibration_file.restore(folder.path, losses, report=accelerator.is_main_process)


def calibrations(distiller: Distiller) -> int:
    """How many steps' batches the losses are calibrated on."""
    return max((loss.calibration for _, loss in distiller.named_losses()), default=0)


def moved(steps: Iterable[Passes], device: torch.device) -> Iterator[Passes]:
    """The batches of each step on a device."""
    return ([batch.to(device) for batch in passes] for passes in steps)


def prepare(config: TrainConfig, distiller: Distiller, accelerator: "Accelerator") -> tuple[nn.Module, TrainState]:
    """Student and losses as the processes train them together, and all of it that a checkpoint holds."""
    prepared: nn.Module = distiller
    if config.sharding == "fsdp2":
        fsdp.shard(distiller, distiller.student, accelerator.device, frozen=False)
        optimizer = accelerator.prepare(optim.build(config.optimizer, distiller.parameters()))
    else:
        optimizer = optim.build(config.optimizer, distiller.parameters())
        prepared, optimizer = accelerator.prepare(distiller, optimizer)
    averages = EMA(distiller.student, config.ema_rates, config.ema_warmup)
    return prepared, TrainState(distiller, optimizer, averages, accelerator.scaler)


def throughput(
    config: TrainConfig, student: nn.Module, teachers: Teachers, batches: Batches, accelerator: "Accelerator"
) -> Throughput:
    """What counts images and operations a second."""
    peak = config.peak_tflops or known_peak(accelerator.device)
    total = None if peak is None else peak * accelerator.num_processes
    step = step_shape(config, batches.micro_size)
    operations = step_operations(step, student, teachers).total
    return Throughput(config.batch_size, operations, total, accelerator.device)
