"""Sharded tensors (DTensor): gathering them, and cutting full tensors alike."""

from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map_only


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP2 shards a model or a part of it."""
    from torch.distributed.fsdp import FSDPModule

    return any(isinstance(module, FSDPModule) for module in model.modules())


def full_tensor(tensor: Tensor) -> Tensor:
    """The full tensor of a sharded one, which is a collective call; a tensor that is not sharded as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # type: ignore[attr-defined]


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor that is spread over several; a tensor that is not as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor  # type: ignore[attr-defined]


def shard_like(tensor: Tensor, of: Tensor) -> Tensor:
    """Shard a full tensor as `of` is sharded; the tensor itself where `of` is not."""
    if not hasattr(of, "full_tensor"):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    sharded: Any = of
    return distribute_tensor(tensor.to(of.device), sharded.device_mesh, sharded.placements, src_data_rank=None)


def gather_tree(value: Any, kept: bool = True) -> Any:  # noqa: ANN401 - any tree
    """Nested lists and mappings with every tensor gathered, detached and on the CPU; a collective call.

    Args:
        value: The tree.
        kept: Whether this process has a use for them; if not, it takes part, and its tensors are empty.
    """

    def gathered(tensor: Tensor) -> Tensor:
        whole = full_tensor(tensor).detach()
        return whole.cpu() if kept else whole.new_empty(0, device="cpu")

    return tree_map_only(Tensor, gathered, value)
