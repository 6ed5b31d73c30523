"""Models too large for one device: FSDP2 (torch's fully_shard) on the student, its losses and the teacher.

Every process keeps a slice of each tensor. A block's weights are gathered when it runs. The student's stay gathered
until its backward is through (gradients and optimizer state are what is large, and attention terms need the position
bias in the backward, ZeRO-2); the frozen teacher's go at once (ZeRO-3).

Checkpoints hold whole tensors, so a run may go on with another number of processes, or without sharding.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dit_shd.attention import Capture, Captures, capture

if TYPE_CHECKING:
    from accelerate import Accelerator


def shard(model: nn.Module, transformer: nn.Module, device: torch.device, frozen: bool) -> None:
    """Replace the parameters of `model` by slices over all processes.

    Args:
        transformer: the part of it (or all) whose blocks are gathered one by one. The rest, projectors of losses among
            it, is gathered as a whole: it need not be called as a module.
        frozen: free a block's gathered weights as soon as it has run: for a teacher, which has no backward.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for block in blocks(transformer):
        fully_shard(block, mesh=mesh, reshard_after_forward=frozen)
    fully_shard(model, mesh=mesh, reshard_after_forward=frozen)


def blocks(model: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a transformer: the members of its outermost lists of modules."""
    found: list[nn.Module] = []
    for child in model.children():
        found += list(child) if isinstance(child, nn.ModuleList) else blocks(child)
    return [block for block in found if any(True for _ in block.parameters())]


def is_sharded(model: nn.Module) -> bool:
    from torch.distributed.fsdp import FSDPModule

    return any(isinstance(module, FSDPModule) for module in model.modules())


def whole(tensor: Tensor) -> Tensor:
    """The tensor a slice is of; every process has to ask for it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # type: ignore[attr-defined]


def slice_like(tensor: Tensor, of: Tensor) -> Tensor:
    """This process's slice of a whole tensor, cut as `of` is; the tensor itself where `of` is whole."""
    if not hasattr(of, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    local: Any = of
    return distribute_tensor(tensor.to(of.device), local.device_mesh, local.placements, src_data_rank=None)


def whole_tree(value: Any) -> Any:
    """Plain data with `whole` tensors in place of slices, on the CPU."""
    if isinstance(value, Tensor):
        return whole(value).detach().cpu()
    if isinstance(value, Mapping):
        return {k: whole_tree(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(whole_tree, value))
    return value


@contextmanager
def synchronised(model: nn.Module, accelerator: "Accelerator", last: bool) -> Iterator[None]:
    """A forward and backward whose gradients are averaged over all processes only if it is the step's last one."""
    if is_sharded(model):
        model.set_requires_gradient_sync(last)  # type: ignore[operator]
        yield
        return
    waits: Any = getattr(model, "no_sync", nullcontext)  # not accelerate's, which syncs a launcher's only process
    with nullcontext() if last else waits():
        yield


class KeptWeights:
    """Captures of a sharded model that outlive its blocks, whose gathered weights do not: W^O is copied once a layer.

    For a frozen model only.
    """

    def __init__(self) -> None:
        self._out: dict[str, Tensor] = {}

    def of(self, layer: str, capture: Capture) -> Capture:
        if capture.out is not None and layer not in self._out:
            self._out[layer] = capture.out.clone()
        bias = capture.bias
        bias = None if bias is None else bias.rebuilt([leaf.clone() for leaf in bias.leaves])
        return replace(capture, out=self._out.get(layer), bias=bias)


@contextmanager
def captured(model: nn.Module) -> Iterator[Captures]:
    """capture(model), for a frozen model in slices as well."""
    if not is_sharded(model):
        with capture(model) as captures:
            yield captures
        return
    held: dict[str, Capture] = {}
    kept = KeptWeights()

    def sink(layer: str, found: Capture) -> None:
        held[layer] = kept.of(layer, found)

    with capture(model, sink=sink):
        yield held
