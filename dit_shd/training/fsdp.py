"""Models too large for one device: FSDP2 (torch's fully_shard) on the student, its losses and the teacher.

Every process keeps a slice of each tensor. A block's weights are gathered when it runs. The student's stay gathered
until its backward is through (gradients and optimizer state are what is large, and attention terms need the position
bias in the backward, ZeRO-2); the frozen teacher's go at once (ZeRO-3).

Checkpoints hold whole tensors, so a run may go on with another number of processes, or without sharding.
"""

from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from dit_shd.core.dtensor import is_sharded
from dit_shd.models.blocks import blocks
from dit_shd.models.quantization import is_quantised
from dit_shd.training.config import TrainConfig


def divides_teachers(config: TrainConfig) -> bool:
    """Whether the processes of a run hold slices of its teachers; one in fewer than 16 bits is whole in each."""
    return config.sharding == "fsdp2" and not is_quantised(config.teacher_precision)


def shard(model: nn.Module, transformer: nn.Module, device: torch.device, frozen: bool) -> None:
    """Replace the parameters of `model` by slices over all processes.

    Args:
        model: On every process, whole; on the CPU or the device, to which each block is moved as it is divided.
        transformer: The part of it (or all) whose blocks are gathered one by one. The rest, projectors of losses among
            it, is gathered as a whole: it need not be called as a module.
        device: The device of this process.
        frozen: Free a block's gathered weights as soon as it has run: for a teacher, which has no backward.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for number, block in enumerate(blocks(transformer)):
        # the first block stays gathered: diffusers' DiT asks its embedding of classes again after the last one
        fully_shard(block, mesh=mesh, reshard_after_forward=frozen and number > 0)
    fully_shard(model, mesh=mesh, reshard_after_forward=frozen)


@contextmanager
def synchronised(model: nn.Module, last: bool) -> Generator[None]:
    """A forward and backward whose gradients are averaged over all processes only if it is the step's last one.

    Until then each process holds them whole, also of a divided model: FSDP2 averages those that are there, and which
    these are may differ by process in a part of a batch, as of a loss that looks at some classes alone.
    """
    if is_sharded(model):
        model.set_requires_gradient_sync(last)  # type: ignore[operator]
        yield
        return
    waits: Any = getattr(model, "no_sync", nullcontext)  # not accelerate's, which syncs a launcher's only process
    with nullcontext() if last else waits():
        yield
