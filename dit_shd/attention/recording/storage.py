"""Tensors in the memory of others."""

from typing import Any

from torch import Tensor


def storage(tensor: Tensor) -> int:
    """A number of a tensor's storage, which no other that exists has: not its address, which on meta is always 0."""
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # a tensor without a storage of its own
        return id(tensor)


def same_memory(one: Any, other: Tensor) -> bool:
    """Whether two tensors are the same memory."""
    return isinstance(one, Tensor) and one.numel() == other.numel() and storage(one) == storage(other)
