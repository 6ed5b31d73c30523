"""Sharded tensors (DTensor): gathering them, and cutting full tensors alike."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP2 shards a model or a part of it."""
    from torch.distributed.fsdp import FSDPModule

    return any(isinstance(module, FSDPModule) for module in model.modules())


def full_tensor(tensor: Tensor) -> Tensor:
    """The full tensor of a sharded one, which is a collective call; a tensor that is not sharded as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # type: ignore[attr-defined]


def shard_like(tensor: Tensor, of: Tensor) -> Tensor:
    """Shard a full tensor as `of` is sharded; the tensor itself where `of` is not."""
    if not hasattr(of, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    local: Any = of
    return distribute_tensor(tensor.to(of.device), local.device_mesh, local.placements, src_data_rank=None)


def gather_tree(value: Any, kept: bool = True) -> Any:  # noqa: ANN401 - any tree
    """Nested lists and mappings with every tensor gathered, detached and on the CPU; a collective call.

    Args:
        value: The tree.
        kept: Whether this process has a use for them; if not, it takes part, and its tensors are empty.
    """
    if isinstance(value, Tensor):
        whole = full_tensor(value).detach()
        return whole.cpu() if kept else whole.new_empty(0, device="cpu")
    if isinstance(value, Mapping):
        return {k: gather_tree(v, kept) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(gather_tree(v, kept) for v in value)
    return value
