"""Building a run: named steps in order, each of which returns what it made.

Nothing is written before open_folder: what cannot work is refused until then.
"""

import logging
from typing import TYPE_CHECKING

import torch
from torch import nn

from dit_shd.core.config import checked, resolve
from dit_shd.core.devices import current_device
from dit_shd.core.distributed import run_on_main
from dit_shd.core.dtensor import is_sharded
from dit_shd.core.files import write_text
from dit_shd.core.pretrained import READING
from dit_shd.core.run_files import RUN_CONFIG
from dit_shd.core.yaml_files import dump, read_yaml
from dit_shd.data.datasets import DATASETS
from dit_shd.data.latent_origin import Kept, before_training
from dit_shd.data.latent_scale import check_scale
from dit_shd.distillation import calibration
from dit_shd.distillation.distiller import Distiller
from dit_shd.distillation.initialisation import initialise as initialisation
from dit_shd.distillation.losses import LOSSES
from dit_shd.distillation.teachers import Teachers, role
from dit_shd.models import blocks
from dit_shd.models.families import FAMILIES
from dit_shd.models.loading import check_finite
from dit_shd.models.lora import add_lora
from dit_shd.models.offload import moved
from dit_shd.tasks import TASKS
from dit_shd.training import calibration_file, checks, fsdp, inputs, optim
from dit_shd.training.accelerator import make_accelerator
from dit_shd.training.batches import CALIBRATION_IMAGES, Batches
from dit_shd.training.compilation import compile_blocks
from dit_shd.training.config import TrainConfig, completed, may_change, resolved, sized
from dit_shd.training.ema import EMA
from dit_shd.training.first_sample import first_sample
from dit_shd.training.micro_batch import with_micro_batch
from dit_shd.training.parts import Parts, load_teachers, weights_of_files
from dit_shd.training.remarks import warn
from dit_shd.training.run import Run
from dit_shd.training.run_folder import RunFolder, is_begun
from dit_shd.training.run_place import refuse_other
from dit_shd.training.services import Services
from dit_shd.training.state import TrainState
from dit_shd.training.surroundings import refuse_surroundings
from dit_shd.training.teacher_check import check_teachers
from dit_shd.training.tracker import Tracker
from dit_shd.training.warm_start import take_weights

if TYPE_CHECKING:
    from accelerate import Accelerator

INITIALISATION_FILE = "initialisation.json"
_log = logging.getLogger("dit_shd")


def build(config: TrainConfig) -> Run:
    """Take all steps, or those that are left for a run that is in its folder already.

    Args:
        config: Of the run.

    Returns:
        Everything that the trainer works with.

    Raises:
        UserError: A config that cannot work; nothing has been written then.
    """
    refuse_surroundings(current_device())
    parts = models_and_task(config)
    check(parts)
    parts = with_micro_batch(parts)
    config, task, teachers = parts.config, parts.task, parts.teachers
    whole = config.sharding != "no" or config.teacher_offload != "no"
    distiller = Distiller(task, parts.student, parts.losses, not whole, config.base_weight)
    remarks = first_sample(config, distiller, teachers)
    accelerator, batches = join(config, distiller)
    if accelerator.is_main_process:
        warn(parts, remarks)
    check_teachers(config, task, teachers, accelerator)
    folder, tracker = open_folder(parts, accelerator)
    try:
        return begin(parts, distiller, batches, folder, tracker)
    except BaseException:
        folder.release()  # whoever keeps the error, as a notebook, is not to keep the folder
        raise


def begin(parts: Parts, distiller: Distiller, batches: Batches, folder: RunFolder, tracker: Tracker) -> Run:
    """Give the student its first weights, or those of the newest checkpoint, and put everything in its place."""
    config, task, teachers, accelerator = parts.config, parts.task, parts.teachers, tracker.accelerator
    initialise(parts, distiller, batches, folder, accelerator)
    add_lora(distiller.student, config.lora, config.seed)
    place(config, distiller, teachers, accelerator)
    calibrate(distiller, teachers, batches, folder, accelerator)
    prepared, state = prepare(config, distiller, accelerator)
    services = Services.of(config, state, teachers, folder, tracker, batches)
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
    """Build or load everything that the config names.

    Args:
        config: As a user gave it.

    Raises:
        UserError: A value out of its range, a name that does not exist, data without a field that the task needs.
    """
    config = checked(config, "train")
    checks.ranges(config)
    refuse_other(config.run)  # before models and data are read, and again when it is opened
    config = inputs.following(resolved(config))
    torch.manual_seed(config.seed)
    task, dataset = TASKS.build(config.task, "task"), DATASETS.build(config.data, "data")
    task.check_data(dataset)
    config = sized(config, {**dataset.sizes, **task.student_options()})
    with READING:
        student = FAMILIES.build(config.student, "student").train()
    if config.gradient_checkpointing:
        blocks.recompute(student)
    losses = [LOSSES.build(plugin, f"losses.{i}") for i, plugin in enumerate(config.losses)]
    checks.teaching(config, losses)
    task.use(dataset, student)  # what it knows of the data, as their adapter, says which teachers it takes
    teachers = load_teachers(config, task)
    start = take_weights(student, config.from_run, task) if config.from_run and not is_begun(config.run) else None
    latents = "latents" in task.needs
    kept = before_training(config.vae, dataset.origin, dataset.shape[0], config.run) if latents else Kept(None)
    scale = check_scale(dataset, kept.origin is None) if latents and not is_begun(config.run) else None
    if scale is not None:
        _log.warning("%s", scale)
    return Parts(config, task, student, losses, teachers, kept, start)


def check(parts: Parts) -> None:
    """Refuse task, data, losses, student and teachers that do not agree.

    Args:
        parts: All of them.

    Raises:
        UserError: They do not agree.
    """
    config, task = parts.config, parts.task
    checks.passes(task, parts.losses)
    checks.guidance(config.task.name, task, parts.losses)
    checks.fields(task, parts.losses)
    checks.compiled(config, parts.student, parts.losses)
    models = {"student": parts.student, **{role(name): teacher for name, teacher in parts.teachers.items()}}
    for who, model in models.items():
        task.check(who, model)
        check_finite(who, model)
    task.check_together(models)
    initialisation.check(config.initialisation, parts.losses_of_teacher, parts.student, parts.teacher)
    checks.adapters(config, parts.student, () if parts.start is None else parts.start.new)
    checks.untrained(config, parts.losses, parts.student)
    if config.validate_every:
        task.check_evaluation(parts.student, parts.kept)


def join(config: TrainConfig, distiller: Distiller) -> tuple["Accelerator", Batches]:
    """Join the other processes, and divide the batches among them.

    Args:
        config: Of the run.
        distiller: Whose task draws the batches.

    Returns:
        Devices and processes, and this process's share of the batches.

    Raises:
        UserError: A batch that cannot be divided, or a launcher that says too little.
    """
    accelerator = make_accelerator(config, distiller.task)
    size = checks.micro_batch_size(config, accelerator.num_processes)
    share = accelerator.num_processes, accelerator.process_index
    at_once = config.micro_batch_size if isinstance(config.micro_batch_size, int) else CALIBRATION_IMAGES
    return accelerator, Batches(distiller.task, config.seed, config.batch_size, size, *share, distiller.fields, at_once)


def open_folder(parts: Parts, accelerator: "Accelerator") -> tuple[RunFolder, Tracker]:
    """Make or reopen the run folder, lock it, and begin the tracker: the first things that are written.

    Args:
        parts: Whose config and autoencoder the folder keeps.
        accelerator: Whose tracker it is.

    Raises:
        UserError: The folder is in use, or holds something else, or the tracker cannot begin.
    """
    config, task = parts.config, parts.task
    seen, run = inputs.seen(parts.teachers, task.dataset), config.run
    if is_begun(run):
        old = completed(read_yaml(run / RUN_CONFIG))
        run_on_main(lambda: inputs.check_moved(run, old, resolve(config), seen))
    folder = RunFolder.open(run, dump(config), [*may_change(task), *inputs.MAY_DIFFER], completed)
    run_on_main(lambda: (parts.kept.write(run), inputs.keep(run, seen)))
    return folder, Tracker(config, folder, accelerator)


def initialise(
    parts: Parts, distiller: Distiller, batches: Batches, folder: RunFolder, accelerator: "Accelerator"
) -> None:
    """Give a new run's student its first weights from the first teacher; a resumed run's are left alone.

    The main process computes and broadcasts them. The plan is kept and logged. With from=RUN all read that run's.
    """
    options, device, student = parts.config.initialisation, accelerator.device, distiller.student
    if folder.newest is not None:
        return
    if parts.start is not None:
        start = parts.start
        run_on_main(lambda: start.write(folder.path))
        if accelerator.is_main_process:
            _log.info("%s", start.line())
    if options.weights == "random":
        return
    moved(student, device)
    teacher = parts.teacher
    assert teacher is not None, "a config that begins with a teacher's weights has a teacher"
    shd = initialisation.shd_of(parts.losses_of_teacher)

    def begin() -> None:
        for model in parts.teachers.values():
            moved(model, device)
        if shd.calibration:
            calibration.calibrate(distiller, parts.teachers, batches.first_steps(distiller.calibration, device))
        sizes = batches.size, options.calibration, batches.at_once
        moments = [batch.to(device) for batch in initialisation.moment_batches(parts.task, batches.seed, *sizes)]
        weights = weights_of_files(parts.config)
        plan = initialisation.initialise(parts.task, student, teacher, moments, options, shd, weights)
        write_text(folder.path / INITIALISATION_FILE, plan.text())
        for line in plan.lines():
            _log.info("initialisation %s", line)

    run_on_main(begin)
    if accelerator.num_processes > 1:
        for tensor in student.state_dict().values():
            torch.distributed.broadcast(tensor, 0)


def place(config: TrainConfig, distiller: Distiller, teachers: Teachers, accelerator: "Accelerator") -> None:
    """Bring the models to their device, with compiled blocks; a teacher that is divided block by block, never whole."""
    if config.compile:
        compile_blocks(distiller.student, *teachers.values())
    distiller.to(accelerator.device)
    for teacher in teachers.values():
        if fsdp.divides_teachers(config):
            fsdp.shard(teacher, teacher, accelerator.device, frozen=True)
        else:
            moved(teacher, accelerator.device)


def calibrate(
    distiller: Distiller, teachers: Teachers, batches: Batches, folder: RunFolder, accelerator: "Accelerator"
) -> None:
    """Calibrate the losses of a new run, or restore what they were calibrated to when it began.

    The main process calibrates (all do with a sharded teacher) and writes; all read, so that all work with the same.
    """
    losses = {name: loss for name, loss in distiller.named_losses() if loss.calibration}
    if not losses or not teachers:
        return
    new = run_on_main(lambda: folder.newest is None or not (folder.path / calibration_file.FILE).exists())
    if new and (accelerator.is_main_process or any(map(is_sharded, teachers.values()))):
        steps = batches.first_steps(distiller.calibration, accelerator.device)
        calibrated = calibration.calibrate(distiller, teachers, steps)
        if accelerator.is_main_process:
            calibration_file.write(folder.path, calibrated)
    accelerator.wait_for_everyone()
    calibration_file.restore(folder.path, losses, report=accelerator.is_main_process)


def prepare(config: TrainConfig, distiller: Distiller, accelerator: "Accelerator") -> tuple[nn.Module, TrainState]:
    """Prepare student and losses for the processes to train them together.

    Args:
        config: Of the run.
        distiller: Student and losses on their device.
        accelerator: Of the run.

    Returns:
        The module to call (wrapped in DDP where there are several processes), and the state that a checkpoint holds.
    """
    prepared: nn.Module = distiller
    if config.sharding == "fsdp2":
        fsdp.shard(distiller, distiller.student, accelerator.device, frozen=False)
        optimizer = accelerator.prepare(optim.build(config.optimizer, distiller.named_parameters()))
    else:
        optimizer = optim.build(config.optimizer, distiller.named_parameters())
        prepared, optimizer = accelerator.prepare(distiller, optimizer)
    averages = EMA(distiller.student, config.ema_rates, config.ema_warmup)
    return prepared, TrainState(distiller, optimizer, averages, accelerator.scaler)
