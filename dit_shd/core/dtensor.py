"""Tensors that are slices of larger ones (DTensor), and the whole ones again."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


def is_sharded(model: nn.Module) -> bool:
    from torch.distributed.fsdp import FSDPModule

    return any(isinstance(module, FSDPModule) for module in model.modules())


def full_tensor(tensor: Tensor) -> Tensor:
    """The tensor a slice is of; every process has to ask for it."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # type: ignore[attr-defined]


def shard_like(tensor: Tensor, of: Tensor) -> Tensor:
    """This process's slice of a whole tensor, cut as `of` is; the tensor itself where `of` is whole."""
    if not hasattr(of, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    local: Any = of
    return distribute_tensor(tensor.to(of.device), local.device_mesh, local.placements, src_data_rank=None)


def gather_tree(value: Any) -> Any:
    """Plain data with `whole` tensors in place of slices, on the CPU."""
    if isinstance(value, Tensor):
        return full_tensor(value).detach().cpu()
    if isinstance(value, Mapping):
        return {k: gather_tree(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(gather_tree, value))
    return value
