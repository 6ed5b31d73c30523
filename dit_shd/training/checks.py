"""Checks of a training config, before anything is written."""

import logging
import re
from collections.abc import Sequence
from typing import Any

from torch import nn

from dit_shd.core.config import check_ranges
from dit_shd.core.devices import accelerator
from dit_shd.core.distributed import launched
from dit_shd.core.errors import UserError
from dit_shd.core.launcher import is_first_process, process_count
from dit_shd.distillation.losses import Loss, Reads
from dit_shd.distillation.schedule import schedule
from dit_shd.distillation.teachers import TEACHER, chosen
from dit_shd.models.lora import check_lora
from dit_shd.models.quantization import is_quantised
from dit_shd.tasks import TASKS, Task
from dit_shd.training.config import TrainConfig

_log = logging.getLogger("dit_shd")


def ranges(config: TrainConfig, counting: bool = False) -> None:
    """Refuse numbers out of their range, and combinations that do not exist.

    Args:
        config: The config of the run.
        counting: Whether it is counted only, which needs no processes.

    Raises:
        UserError: The key, its range and the value.
    """
    check_ranges(config)
    if not config.ema_rates or len({f"{rate:g}" for rate in config.ema_rates}) < len(config.ema_rates):
        raise UserError(f"ema: wanted one or more rates, each once, found {config.ema}")
    count = 3 if config.optimizer.name == "adan" else 2
    betas = config.optimizer.betas
    if betas and (len(betas) != count or not all(0 <= b < 1 for b in betas)):
        raise UserError(f"optimizer.betas: {config.optimizer.name} wanted {count} numbers in [0, 1), found {betas}")
    if config.optimizer.final_lr > config.optimizer.lr:
        lr, final = config.optimizer.lr, config.optimizer.final_lr
        raise UserError(f"optimizer.final_lr: wanted at most lr, {lr:g}, found {final:g}; the rate would rise")
    if config.precision == "fp16" and accelerator() is None:
        raise UserError("precision: fp16 needs a GPU, and there is none here; use bf16 or no")
    if config.from_run and config.initialisation.weights == "teacher":
        raise UserError("from: initialisation.weights=teacher begins with the teacher's weights; choose one of the two")
    if config.sharding != "no":
        _sharding(config, counting)
    _teacher_memory(config)
    if config.dry_run:
        raise UserError("dry_run: is for the command; from Python call dit_shd.training.dry_run.dry_run(config)")
    if config.tracker is not None:
        _tracker(config.tracker)


def _sharding(config: TrainConfig, counting: bool) -> None:
    if not counting and process_count() < 2:
        raise UserError("sharding: fsdp2 needs two processes or more; start it by torchrun or accelerate launch")
    reason = fsdp2_refusal(config)
    if reason is not None:
        raise UserError(f"sharding: {reason}")


def fsdp2_refusal(config: TrainConfig) -> str | None:
    """Why a run cannot be divided by FSDP2, whatever its number of processes; None where it can."""
    if config.precision == "fp16":
        return "fsdp2 works with precision no or bf16, found fp16"
    if config.optimizer.name == "adamw8bit":
        return "fsdp2 divides the optimizer's states already; optimizer.name=adamw, found adamw8bit"
    if config.gradient_norms_every:
        return "fsdp2 cannot measure each term's gradient; set gradient_norms_every=0"
    if config.teacher_offload != "no":
        return f"fsdp2 does not go with teacher_offload={config.teacher_offload}; choose one of the two"
    return None


def _teacher_memory(config: TrainConfig) -> None:
    """Refuse ways to hold a teacher that do not go together."""
    if config.teacher_offload == "no":
        return
    others = {"compile": config.compile, "teacher_precision": is_quantised(config.teacher_precision)}
    for key, given in others.items():
        if given:
            raise UserError(
                f"teacher_offload: blocks does not go with {key}={getattr(config, key)}; choose one of the two"
            )


def _tracker(name: str) -> None:
    from accelerate.tracking import get_available_trackers

    available = [str(tracker) for tracker in get_available_trackers()]
    if name not in available:
        raise UserError(
            f"tracker: '{name}' is not installed or unknown to accelerate; installed: {available or 'none'}"
        )


def teaching(config: TrainConfig, losses: Sequence[Loss]) -> None:
    """Refuse losses without a teacher, and a teacher without a use; warn of losses whose weights are all 0.

    Args:
        config: The config of the run.
        losses: The losses, by their names in the config.

    Raises:
        UserError: Losses without a teacher, or a teacher that no loss reads.
    """
    _names(config)
    names = ", ".join(plugin.name for plugin in config.losses)
    reading = {i: loss for i, loss in enumerate(losses) if loss.reads_teacher}
    if not config.teachers:
        if reading:
            raise UserError(
                f"teacher: losses need a teacher, and none was given (losses: [] is plain training); found {names}"
            )
        return
    read = {name for i, loss in reading.items() for name in chosen(loss.teacher, config.teachers, f"losses.{i}")}
    if config.initialisation.weights == "teacher":  # a use, even on resumption: it is loaded then, too
        read.add(next(iter(config.teachers)))
    unread = [name for name in config.teachers if name not in read]
    plain = "teacher=null is plain training, initialisation.weights=teacher takes its weights to begin with"
    if unread and not losses:
        raise UserError(
            f"teacher: {config.teachers[unread[0]]} was given, but losses is empty, so nothing would be learned from "
            f"it; name some (losses='[{{name: output}}]'); {plain}"
        )
    if unread:
        raise UserError(
            f"{_key(unread[0])}: {config.teachers[unread[0]]} was given, but no loss reads it ({names}); "
            + (plain if len(config.teachers) == 1 else "name it in a loss (teacher: NAME) or leave it out")
        )
    by_losses = reading and config.initialisation.weights != "teacher"
    idle = [i for i, loss in enumerate(losses) if loss.heaviest(config.steps) == 0]
    if not is_first_process():
        return
    if by_losses and len(idle) == len(losses):
        _log.warning("losses: the weights are 0 in all %d steps (%s): no teacher is learned from", config.steps, names)
    for i in filter(lambda i: any(losses[i].weight.values()), idle):
        _log.warning("losses.%d.weight: begins after the %d steps of this run", i, config.steps)


def _names(config: TrainConfig) -> None:
    """Refuse names of teachers that could not stand in keys and logs."""
    if isinstance(config.teacher, dict):
        bad = [name for name in config.teacher if not re.fullmatch(r"[A-Za-z0-9][\w-]*", name)]
        if bad or not config.teacher:
            first = f"the name '{bad[0]}'" if bad else "no name"
            raise UserError(
                "teacher: wanted a place, or {name: place, ...} with names of letters, digits, - and _; found " + first
            )


def _key(name: str) -> str:
    """The key of a teacher in the config."""
    return TEACHER if name == TEACHER else f"{TEACHER}.{name}"


def passes(task: Task[Any], losses: Sequence[Loss]) -> None:
    """Refuse a loss that is a term of no pass, or of one that the task cannot have.

    Args:
        task: The task as it is configured.
        losses: The losses in the order of the config.

    Raises:
        UserError: Such a loss.
    """
    for i, loss in enumerate(losses):
        if loss.passes is None:
            continue
        unknown = [name for name in loss.passes if name not in task.passes]
        if len(unknown) == len(loss.passes) or any(name not in task.all_passes for name in unknown):
            raise UserError(
                f"losses.{i}.passes: wanted one or more of {', '.join(task.passes)}, which the task has as it is "
                f"configured, found {', '.join(loss.passes)}"
            )


def guidance(name: str, task: Task[Any], losses: Sequence[Loss]) -> None:
    """Refuse a guided target for a task without a condition that could be left out.

    Args:
        name: The name of the task.
        task: The task as it is configured.
        losses: The losses in the order of the config.

    Raises:
        UserError: Such a loss.
    """
    for i, loss in enumerate(losses):
        if loss.guidance is not None and not task.guides:
            able = ", ".join(known for known in TASKS.names() if TASKS.find(known).guides)
            raise UserError(
                f"losses.{i}.guidance: {name} has no condition that could be left out; wanted one of the tasks {able}"
            )


def compiled(config: TrainConfig, student: nn.Module, losses: Sequence[Loss]) -> None:
    """Refuse losses that read what compiled blocks do not give.

    Args:
        config: The config of the run.
        student: Whose blocks may be compiled.
        losses: The losses in the order of the config.

    Raises:
        UserError: Such a loss.
    """
    recomputed = config.compile and config.gradient_checkpointing and config.sharding == "fsdp2"
    for i, loss in enumerate(losses):
        if recomputed and Reads.ATTENTION in loss.reads and type(student).__name__ == "DiTTransformer2DModel":
            raise UserError(
                f"losses.{i}: reads attention of a DiTTransformer2DModel, which does not go with compile, "
                "gradient_checkpointing and sharding=fsdp2 together; leave one of them out"
            )
        if config.compile and Reads.ATTENTION_OUTPUT in loss.reads:
            raise UserError(
                f"losses.{i}: reads outputs of attention modules, which compiled blocks do not give; compile=false"
            )


def fields(task: Task[Any], losses: Sequence[Loss]) -> None:
    """Refuse a loss that reads a field which the dataset lacks.

    Args:
        task: With its dataset.
        losses: The losses in the order of the config.

    Raises:
        UserError: Such a loss.
    """
    batched = task.dataset.fields - {"images"}  # these are given one by one
    for i, loss in enumerate(losses):
        missing = sorted(loss.fields - batched)
        if missing:
            raise UserError(
                f"losses.{i}: reads {', '.join(missing)} of the data, whose batches have "
                f"{', '.join(sorted(batched))}; choose other data or leave the loss out"
            )


def adapters(config: TrainConfig, student: nn.Module, new: Sequence[str]) -> None:
    """Refuse low-rank adapters that fit nowhere, and those on random weights.

    They freeze these, and a last layer of zeros gives no gradient at all.

    Args:
        config: The config of the run.
        student: As it was built.
        new: Its tensors that the model of `from` lacks.

    Raises:
        UserError: Such a student.
    """
    check_lora(student, config.lora)
    if not config.lora.rank:
        return
    begins = config.from_run or config.initialisation.weights == "teacher" or getattr(student, "folder", None)
    if not begins:
        raise UserError(
            "lora.rank: freezes the student's weights, which are random; wanted initialisation.weights=teacher or "
            "from=MODEL, or lora.rank=0"
        )
    if new:
        raise UserError(
            f"lora.rank: freezes the student's weights, of which from={config.from_run} lacks {', '.join(new[:3])}"
            f"{', ...' if len(new) > 3 else ''}; they would stay random; wanted one with all, or lora.rank=0"
        )


def untrained(config: TrainConfig, losses: Sequence[Loss], student: nn.Module) -> str | None:
    """What only the task's own loss would train, where that has no weight; None where it has, or there is nothing.

    Args:
        config: The config of the run.
        losses: The losses in the order of the config.
        student: Perhaps with a variance in its output.

    Raises:
        UserError: A variance that would stay at zero, by which a model that predicts velocity is known.
    """
    if any(schedule(config.base_weight, "base_weight").values()):
        return None
    weighed = [loss for loss in losses if loss.heaviest(config.steps)]
    if all(Reads.OUTPUT not in loss.reads for loss in weighed):
        return "base_weight: is 0, and no loss reads what the student predicts: its last layer stays as it begins"
    settings: Any = getattr(student, "config", {})
    if not settings.get("learn_sigma") or any(getattr(loss, "variance", False) for loss in weighed):
        return None
    line = (
        "base_weight: is 0, and no loss trains the variance that the student predicts; output with variance: true "
        "trains it, student.learn_sigma=false has none"
    )
    if config.initialisation.weights == "random" and not config.from_run:
        raise UserError(line)
    return f"{line}; it stays as it begins"


def micro_batch_size(config: TrainConfig, processes: int) -> int:
    """Images of one forward in one process.

    Args:
        config: The config of the run.
        processes: That accelerate works with.

    Raises:
        UserError: The batch size is no multiple of it times the processes, or the launcher started another number.
    """
    launched(processes)
    given = config.micro_batch_size
    size = given if isinstance(given, int) else config.batch_size // processes
    if size < 1 or config.batch_size % (size * processes):
        raise UserError(
            f"batch_size {config.batch_size} is not a multiple of micro_batch_size {size} x {processes} processes"
        )
    return size
