"""One result of attention, and the rows by which it is known again further on."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dit_shd.attention.recording.projection import Projection

PATIENCE = 32
"""How many matrix products after an attention result its projection may come."""


@dataclass(frozen=True, eq=False)
class Part:
    """Some query tokens that share a projection."""

    tokens: Tensor
    """Their positions [r], in order."""
    projection: Projection


class Result:
    """One result of attention, and what is known of where its rows went."""

    def __init__(self, mixed: Tensor):
        self.mixed = mixed
        self.columns = mixed.shape[1] * mixed.shape[3]
        self.patience = PATIENCE
        self.arrivals: list[Part] = []
        self.reason = ""
        self._rows: dict[torch.dtype, Tensor] = {}

    def is_of(self, mixed: Tensor) -> bool:
        """Whether it is this one."""
        return self.mixed is mixed or (mixed.ndim == 3 and same_memory(self.mixed, mixed))

    def among(self, given: Tensor) -> Tensor:
        """The tokens [r] whose rows are among those of given [..., h d]."""
        if given.dtype not in self._rows:
            self._rows[given.dtype] = _fingerprints(self.mixed.transpose(1, 2).flatten(2).to(given.dtype))  # [b,n]
        rows = self._rows[given.dtype]
        there = torch.isin(rows, _fingerprints(given.reshape(-1, self.columns))) & (rows != 0)
        return there.any(0).cpu().nonzero()[:, 0]


def address(tensor: Tensor) -> int:
    """Where a tensor's memory begins."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (NotImplementedError, RuntimeError):  # a tensor without memory of its own
        return id(tensor)


def same_memory(one: Any, other: Tensor) -> bool:
    """Whether two tensors are the same memory."""
    return isinstance(one, Tensor) and one.numel() == other.numel() and address(one) == address(other)


def _fingerprints(rows: Tensor) -> Tensor:
    """A number for each row [..., k] that depends on every bit of it, and on nothing else; 0 for a row of zeros."""
    wide, whole = (torch.float64, torch.int64) if rows.dtype == torch.float64 else (torch.float32, torch.int32)
    bits = rows.to(wide).contiguous().view(whole).long()
    odd = torch.randint(-(2**62), 2**62, (rows.shape[-1],), generator=torch.Generator().manual_seed(0))
    return (bits * (2 * odd + 1).to(bits.device)).sum(-1)
