"""The precision of matrix products, and of what is computed from tensors of less."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


@contextmanager
def true_float32() -> Generator[None]:
    """Keep all bits in products and convolutions of float32, whatever the process allows elsewhere (TF32, bfloat16).

    By the settings of each library, which know what the older ones have set, too; those raise where both were used.
    """
    if torch.compiler.is_compiling():  # a setting of the process, not of a graph
        yield
        return
    libraries: Any = torch.backends
    places = [libraries.cuda.matmul, libraries.cudnn.conv, libraries.mkldnn.matmul, libraries.mkldnn.conv]
    before = [(place, allowed) for place in places if (allowed := place.fp32_precision) in ("tf32", "bf16")]
    try:
        for place, _ in before:
            place.fp32_precision = "ieee"
        yield
    finally:
        for place, allowed in before:
            place.fp32_precision = "none"  # it follows its library's again, where that is what it did
            if place.fp32_precision != allowed:
                place.fp32_precision = allowed


def dtype_of(module: nn.Module) -> torch.dtype | None:
    """The type of a module's first parameter of numbers; weights that are packed in 4 bits are bytes. None: no such."""
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), None)


def wide_dtype(tensor: Tensor) -> torch.dtype:
    """float32, or the tensor's own type where that is wider."""
    return torch.promote_types(tensor.dtype, torch.float32)
