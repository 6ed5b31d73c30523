"""Additive attention biases that are looked up row by row, so that an n x m bias never has to exist.

A bias knows its rows and, for a backward pass, how a gradient of those rows reaches its leaves.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor


class Bias(ABC):
    """Something added to the scores [b,h,n,m] before the softmax."""

    leaves: tuple[Tensor, ...]
    """The tensors a gradient flows to."""

    @abstractmethod
    def rows(self, rows: slice) -> Tensor:
        """The bias of some query rows, broadcastable to [b,h,r,m]."""

    @abstractmethod
    def accumulate(self, grads: Sequence[Tensor], rows: slice, d_scores: Tensor) -> None:
        """Add to `grads` (one for each leaf) what the score gradients d_scores[b,h,r,m] of some rows mean for it."""

    @abstractmethod
    def detach(self) -> "Bias":
        """The same without a graph."""

    @abstractmethod
    def shape(self) -> tuple[int, int, int, int]:
        """(b, h, n, m), with 1 where it broadcasts."""

    def needs_grad(self) -> bool:
        return any(leaf.requires_grad for leaf in self.leaves)

    def zero_grads(self) -> list[Tensor]:
        """Float32 (or wider) accumulators shaped like the leaves."""
        return [torch.zeros_like(x, dtype=torch.promote_types(x.dtype, torch.float32)) for x in self.leaves]


class DenseBias(Bias):
    """A bias or mask tensor broadcastable to [b,h,n,m]; a boolean mask keeps what is True (as SDPA reads it)."""

    def __init__(self, tensor: Tensor):
        if tensor.dtype == torch.bool:
            tensor = torch.zeros_like(tensor, dtype=torch.float32).masked_fill_(~tensor, float("-inf"))
        while tensor.ndim < 4:
            tensor = tensor[None]
        if tensor.ndim != 4:
            raise ValueError(f"bias: wanted a tensor broadcastable to [b,h,n,m], found shape {tuple(tensor.shape)}")
        self.leaves = (tensor,)

    def rows(self, rows: slice) -> Tensor:
        (tensor,) = self.leaves
        return tensor if tensor.shape[2] == 1 else tensor[:, :, rows]

    def accumulate(self, grads: Sequence[Tensor], rows: slice, d_scores: Tensor) -> None:
        (grad,) = grads
        target = grad if grad.shape[2] == 1 else grad[:, :, rows]
        target += d_scores.sum_to_size(target.shape)

    def detach(self) -> "DenseBias":
        return DenseBias(self.leaves[0].detach())

    def shape(self) -> tuple[int, int, int, int]:
        b, h, n, m = self.leaves[0].shape
        return b, h, n, m


class RelativeBias(Bias):
    """A learnable bias that depends on the 2-D offset of two tokens only (BEiT; MDT).

    The table [(2w-1)^2+3, h] is indexed by (y_q - y_k + w-1)(2w-1) + (x_q - x_k + w-1). With one code
    y(2w-1) + x for each token that index is code_q - code_k + offset, so no n x n index has to be kept.

    Args:
        table: [(2w-1)^2+3, h]; the last three entries are never used (BEiT keeps them for its class token).
        code: [n] for all samples, or [b,n] where each sample kept its own tokens.
        window: w, tokens along one side.
    """

    def __init__(self, table: Tensor, code: Tensor, window: int):
        self.leaves = (table,)
        self.code = code if code.ndim == 2 else code[None]
        self.offset = (window - 1) * (2 * window - 1) + (window - 1)

    @staticmethod
    def codes(window: int) -> Tensor:
        """The code of every token of a w x w grid, row by row: [w*w]."""
        line = torch.arange(window)
        return (line[:, None] * (2 * window - 1) + line[None, :]).flatten()

    def _index(self, rows: slice) -> Tensor:
        return self.code[:, rows, None] - self.code[:, None, :] + self.offset  # [b or 1, r, m]

    def rows(self, rows: slice) -> Tensor:
        index = self._index(rows)
        (table,) = self.leaves
        looked_up = table.t().index_select(1, index.flatten())  # [h, b*r*m]
        return looked_up.view(table.shape[1], *index.shape).transpose(0, 1)

    def accumulate(self, grads: Sequence[Tensor], rows: slice, d_scores: Tensor) -> None:
        (grad,) = grads
        index = self._index(rows).flatten()
        if self.code.shape[0] == 1:
            d_scores = d_scores.sum(0, keepdim=True)
        size, heads = grad.shape
        places = index + size * torch.arange(heads, device=index.device)[:, None]  # one count for all heads
        weights = d_scores.transpose(0, 1).reshape(-1).to(grad.dtype)
        grad += torch.bincount(places.flatten(), weights, minlength=size * heads).view(heads, size).t()

    def detach(self) -> "RelativeBias":
        copy = RelativeBias.__new__(RelativeBias)
        copy.leaves, copy.code, copy.offset = (self.leaves[0].detach(),), self.code, self.offset
        return copy

    def shape(self) -> tuple[int, int, int, int]:
        b, n = self.code.shape
        return b, self.leaves[0].shape[1], n, n
