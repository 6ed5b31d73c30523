"""Additive attention biases that are added to the scores tile by tile, so that an n x m bias never has to exist.

A tile is some heads and a run of query rows. A bias knows how to add itself to the scores of a tile, and how the
score gradients of a tile reach its leaves.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cached_property

import torch
from torch import Tensor

from dit_shd.core.precision import wide_dtype

MASKED = -5e3
"""A bias that is at most this hides a key: masks are minus infinity, finfo.min or, often, -10,000."""
Heads = slice | Tensor
Adder = Callable[[Tensor, slice], None]
"""add(scores[b,k,r,m], rows): adds, in place, the bias of some query rows."""


class BiasGradient(ABC):
    """Collects what score gradients mean for the leaves of a bias."""

    def __init__(self, shape: tuple[int, ...], leaf: Tensor):
        self.shape = shape
        """Of `collected`."""
        self._leaf = leaf

    @cached_property
    def collected(self) -> Tensor:
        """Where they are added up, in the layout of the bias's own class; zeros at first, unless it is set."""
        wide = wide_dtype(self._leaf)
        return torch.zeros(self.shape, dtype=wide, device=self._leaf.device)

    @abstractmethod
    def add(self, d_scores: Tensor, samples: slice, heads: Heads, rows: slice) -> None:
        """Take in the score gradients [b,k,r,m] of one tile: those samples, heads and query rows."""

    @abstractmethod
    def total(self) -> tuple[Tensor, ...]:
        """One tensor for each leaf: [b or 1, ...], the samples apart or summed, as was asked for."""


class Bias(ABC):
    """Something added to the scores [b,h,n,m] before the softmax."""

    leaves: tuple[Tensor, ...]
    """The tensors a gradient flows to."""
    masks: bool
    """Whether entries may be minus infinity."""

    @abstractmethod
    def shape(self) -> tuple[int, int, int, int]:
        """(b, h, n, m), with 1 where it broadcasts."""

    @abstractmethod
    def rebuilt(self, leaves: Sequence[Tensor]) -> "Bias":
        """The same bias over other leaves."""

    @abstractmethod
    def samples(self, part: slice) -> "Bias":
        """The bias of some samples."""

    @abstractmethod
    def heads(self, heads: Heads) -> "Bias":
        """The bias of some heads."""

    @abstractmethod
    def select(self, rows: Tensor) -> "Bias":
        """The bias of the query rows with these indices [r]."""

    @abstractmethod
    def adder(self, heads: Heads = slice(None), factor: float = 1.0) -> Adder:
        """What adds factor * bias to the scores of some heads; detached from the graph."""

    def tile(self, heads: Heads, rows: slice) -> Tensor | None:
        """The bias of some heads and query rows [k,r,m], the same for all samples, where it is kept; None elsewhere."""
        return None

    @abstractmethod
    def rows(self, rows: slice) -> Tensor:
        """The bias of some query rows, broadcastable to [b,h,r,m], with its graph."""

    @abstractmethod
    def gradient(self, samples: int) -> BiasGradient:
        """A collector, for `samples` samples kept apart, or 1 for their sum; in float32 or wider."""

    @abstractmethod
    def weighted(self, totals: Sequence[Tensor], weights: Tensor | None = None) -> tuple[Tensor, ...]:
        """Gradients shaped and typed as the leaves: sum over samples of weights[b] * totals[b] (weights 1 if None)."""

    def detach(self) -> "Bias":
        """The same without a graph."""
        return self.rebuilt([leaf.detach() for leaf in self.leaves])

    def scaled(self, factor: float) -> "Bias":
        """The bias times a factor."""
        return self.rebuilt([leaf * factor for leaf in self.leaves])

    def needs_grad(self) -> bool:
        return any(leaf.requires_grad for leaf in self.leaves)


class DenseBias(Bias):
    """A bias or mask tensor broadcastable to [b,h,n,m]; a boolean mask keeps what is True (as SDPA reads it)."""

    masks = True

    def __init__(self, tensor: Tensor):
        if tensor.dtype == torch.bool:
            tensor = torch.zeros_like(tensor, dtype=torch.bfloat16).masked_fill_(~tensor, float("-inf"))  # exact
        while tensor.ndim < 4:
            tensor = tensor[None]
        if tensor.ndim != 4:
            raise ValueError(f"bias: wanted a tensor broadcastable to [b,h,n,m], found shape {tuple(tensor.shape)}")
        self.leaves = (tensor,)

    def shape(self) -> tuple[int, int, int, int]:
        b, h, n, m = self.leaves[0].shape
        return b, h, n, m

    def rebuilt(self, leaves: Sequence[Tensor]) -> "DenseBias":
        return DenseBias(leaves[0])

    def block(self, rows: slice, keys: slice) -> "DenseBias":
        """The bias of some query rows over some keys."""
        (tensor,) = self.leaves
        tensor = tensor if tensor.shape[2] == 1 else tensor[:, :, rows]
        return DenseBias(tensor if tensor.shape[3] == 1 else tensor[..., keys])

    def samples(self, part: slice) -> "DenseBias":
        (tensor,) = self.leaves
        return self if tensor.shape[0] == 1 else DenseBias(tensor[part])

    def heads(self, heads: Heads) -> "DenseBias":
        (tensor,) = self.leaves
        return self if tensor.shape[1] == 1 else DenseBias(tensor[:, heads])

    def select(self, rows: Tensor) -> "DenseBias":
        (tensor,) = self.leaves
        return self if tensor.shape[2] == 1 else DenseBias(tensor[:, :, rows])

    def rows(self, rows: slice) -> Tensor:
        (tensor,) = self.leaves
        return tensor if tensor.shape[2] == 1 else tensor[:, :, rows]

    def scaled(self, factor: float) -> "DenseBias":
        (tensor,) = self.leaves
        return DenseBias(_stretched(tensor.to(wide_dtype(tensor)), factor))

    def adder(self, heads: Heads = slice(None), factor: float = 1.0) -> Adder:
        tensor = self.leaves[0].detach()
        tensor = tensor if tensor.shape[1] == 1 else tensor[:, heads]

        def add(scores: Tensor, rows: slice) -> None:
            added = tensor if tensor.shape[2] == 1 else tensor[:, :, rows]
            if factor <= 1:
                scores.add_(added, alpha=factor)
            else:
                scores.add_(_stretched(added.to(scores.dtype), factor))

        return add

    def gradient(self, samples: int) -> BiasGradient:
        return _DenseGradient(self.leaves[0], samples)

    def weighted(self, totals: Sequence[Tensor], weights: Tensor | None = None) -> tuple[Tensor, ...]:
        (leaf,), (total,) = self.leaves, totals
        if weights is not None:
            total = total * weights.to(total.dtype)[:, None, None, None]
        return (total.sum_to_size(leaf.shape).to(leaf.dtype),)


def _stretched(bias: Tensor, factor: float) -> Tensor:
    """Factor * bias, in which what is finite stays finite: rows masked by finfo.min do not become rows of infinity."""
    limit = torch.finfo(bias.dtype).max
    return torch.where(bias.isinf(), bias, (bias * factor).clamp(-limit, limit))


class _DenseGradient(BiasGradient):
    def __init__(self, leaf: Tensor, samples: int):
        super().__init__((max(samples, leaf.shape[0]), *leaf.shape[1:]), leaf)

    def add(self, d_scores: Tensor, samples: slice, heads: Heads, rows: slice) -> None:
        every = slice(None)
        b, h, n, _ = self.collected.shape
        place = (every if b == 1 else samples, every if h == 1 else heads, every if n == 1 else rows)
        target = self.collected[place]
        self.collected[place] = target + d_scores.sum_to_size(target.shape)

    def total(self) -> tuple[Tensor, ...]:
        return (self.collected,)
