"""`micro_batch_size=auto`: the largest micro batch that fits into memory, by count and, on a GPU, by a real step."""

import gc
import logging
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import nn

from dit_shd.core.devices import current_device
from dit_shd.core.distributed import run_on_main
from dit_shd.core.errors import UserError
from dit_shd.core.launcher import process_count
from dit_shd.core.memory import is_out_of_memory
from dit_shd.core.run_files import RUN_CONFIG
from dit_shd.core.yaml_files import read_yaml
from dit_shd.models.lora import add_lora
from dit_shd.models.offload import moved
from dit_shd.profiling.hardware import free_memory, peak_memory
from dit_shd.profiling.memory import TEACHER, Memory, held, step_memory
from dit_shd.profiling.meta import ModelSpec
from dit_shd.training.config import AUTO_SIZE
from dit_shd.training.dry_run import step_shape, take_a_step
from dit_shd.training.parts import Parts
from dit_shd.training.run_folder import is_begun

SHARE = 0.9
"""Share of the free memory that a step may take by count."""
_log = logging.getLogger("dit_shd")


def with_micro_batch(parts: Parts) -> Parts:
    """The parts of a run with the number in the place of `micro_batch_size: auto`.

    A resumed run keeps its own; where more processes share the batch, the largest below it that divides their parts.

    Args:
        parts: Of the run, checked.

    Raises:
        UserError: Not even one image fits, or the models are to be divided.
    """
    config = parts.config
    if config.micro_batch_size != AUTO_SIZE:
        return parts
    saved = read_yaml(config.run / RUN_CONFIG).get("micro_batch_size") if is_begun(config.run) else None
    processes = process_count()
    if isinstance(saved, int):
        size = next((size for size in _sizes(config.batch_size, processes) if size <= saved), saved)
    else:
        size = run_on_main(lambda: largest(parts, processes))
    return replace(parts, config=replace(config, micro_batch_size=size))


def largest(parts: Parts, processes: int) -> int:
    """The largest number of images that divides the batch and whose step fits.

    Args:
        parts: Of the run.
        processes: That share the batch.

    Raises:
        UserError: Not even one image fits, or the models are to be divided.
    """
    if parts.config.sharding != "no":
        raise UserError("micro_batch_size: auto tries whole models on one GPU, sharding divides them; give a number")
    config, device = replace(parts.config, micro_batch_size=None), current_device()
    free = free_memory(device)
    student = ModelSpec.of(parts.student).skeleton()
    add_lora(student, config.lora)  # the student itself is given adapters when it has its first weights
    needed = 0
    for size in _sizes(config.batch_size, processes):
        memory = step_memory(step_shape(config, size), student, parts.teachers)
        needed = (memory.total if processes == 1 else memory.replicated) - _there(memory, parts, device)
        if needed > SHARE * free or not _takes_a_step(parts, size, device):
            continue
        _log.info(
            "micro_batch_size: %d images of one forward, %.1f GiB by count of %.1f free on %s",
            *(size, needed / 2**30, free / 2**30, device),
        )
        return size
    raise UserError(
        f"micro_batch_size: not even one image fits: {needed / 2**30:.1f} GiB by count, {free / 2**30:.1f} free on "
        f"{device}; gradient_checkpointing=true, precision=bf16 and sharding=fsdp2 take less (dry_run=true)"
    )


def _there(memory: Memory, parts: Parts, device: torch.device) -> int:
    """Bytes of what is counted that lies on a device already, and is not in its free memory.

    On a CPU that is every model, on a GPU a teacher in fewer bits, which is read there.
    """

    def is_there(model: nn.Module) -> bool:
        return next(model.parameters()).device.type == device.type

    teachers = memory.parts[TEACHER] if all(map(is_there, parts.teachers.values())) else 0
    return teachers + (held(parts.student) if is_there(parts.student) else 0)


def _sizes(batch: int, processes: int) -> Iterator[int]:
    """The sizes of micro batches that divide a process's part of a batch, largest first."""
    return divisors(batch // max(1, processes))


def divisors(number: int) -> Iterator[int]:
    """The divisors of a number, largest first."""
    return (size for size in range(number, 0, -1) if number % size == 0)


def _takes_a_step(parts: Parts, size: int, device: torch.device) -> bool:
    """Whether a real step of so many images ends without running out of memory.

    Not tried on a CPU, which swaps, nor where a loss reads fields of the data, of which a step on noise has none.
    """
    if device.type == "cpu" or any(loss.fields for loss in parts.losses):
        return True
    try:
        take_a_step(parts.config, parts.teachers, size, peak_memory(device))
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return False
    finally:
        for teacher in parts.teachers.values():  # the next trial has all of the GPU
            moved(teacher, torch.device("cpu"))
        gc.collect()  # the trial's student is in cycles of references
        torch.get_device_module(device).empty_cache()
    return True
