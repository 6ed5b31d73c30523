"""The precision of matrix products, and of what is computed from tensors of less."""

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def true_float32() -> Generator[None]:
    """Keep all bits in products of float32, whatever the process allows elsewhere (TF32, bfloat16)."""
    if torch.compiler.is_compiling():  # a setting of the process, not of a graph
        yield
        return
    before = torch.get_float32_matmul_precision()
    if before != "highest":
        torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        if before != "highest":
            torch.set_float32_matmul_precision(before)


def dtype_of(module: nn.Module) -> torch.dtype | None:
    """The type of a module's first parameter of numbers; weights that are packed in 4 bits are bytes. None: no such."""
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), None)


def wide_dtype(tensor: Tensor) -> torch.dtype:
    """float32, or the tensor's own type where that is wider."""
    return torch.promote_types(tensor.dtype, torch.float32)
