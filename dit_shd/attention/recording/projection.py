"""Which weights W^O take over what an attention layer mixed, found by watching where its rows arrive.

No list of names: while the model runs once, the rows of each attention result [b,n,h d] are looked for among the rows
that reach a matrix product with a parameter. In joint text-image attention the image tokens' rows arrive at one
projection and the text tokens' at another; in blocks that also hold an MLP they arrive as the first columns of a wider
input. Rows that arrive nowhere were changed on the way (by a gate, say), and then no W^O of the paper exists.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dit_shd.attention.recording.discovery import plain


@dataclass(frozen=True, eq=False)
class Projection:
    """A parameter that holds W^O, as h d of its input columns starting at `first`."""

    owner: nn.Module
    parameter: str
    name: str
    """Of the owner, in the model it was found in."""
    transposed: bool
    """Stored [in, out], as GPT-2 does, instead of [out, in]."""
    first: int

    def by_head(self, heads: int, width: int) -> Tensor:
        """W^O [h,d,e], without a graph."""
        weight = getattr(self.owner, self.parameter).detach()
        weight = weight if self.transposed else weight.t()
        return weight[self.first : self.first + heads * width].unflatten(0, (heads, width))

    def same(self, other: "Projection | None") -> bool:
        return other is not None and (self.owner, self.parameter, self.first) == (
            other.owner,
            other.parameter,
            other.first,
        )


@dataclass(frozen=True, eq=False)
class Part:
    """Some query tokens that share a projection."""

    tokens: Tensor
    """Their positions [r], in order."""
    projection: Projection


PATIENCE = 32
"""How many matrix products after an attention result its projection may come."""


class ProjectionFinder:
    """Looks, in one eager forward, for where the results of attention arrive and how sequences are joined.

    `joins` holds the lengths (first, second) of every pair of tensors that were concatenated along their tokens.
    """

    def __init__(self, root: nn.Module):
        self.root = root
        self.joins: list[tuple[int, int]] = []
        self._found: list[_Result] = []

    def attention(self, result: Tensor) -> None:
        """Attention gave this [b,h,n,d]; its rows are looked for from now on."""
        if result.ndim == 4 and not result.is_nested:
            self._found.append(_Result(result))

    def see(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """A function ran."""
        if func is torch.cat or func is torch.concat:
            self._join(*args, **kwargs)
        elif self._found and func in _PRODUCTS:
            operands = _PRODUCTS[func](*args, **kwargs)
            if operands is not None and isinstance(operands[1], Tensor) and operands[1].ndim == 2:
                self._arrive(*operands)

    def parts(self, mixed: Tensor, layer: str, layers: Collection[str]) -> list[Part]:
        """Where the rows of one result of `layer` arrived, in the order of their tokens.

        What another of the attention `layers` does with them (as its queries, say) is not a W^O.
        """
        arrivals = next((result.arrivals for result in self._found if result.mixed is mixed), [])
        others = [f"{other}." for other in layers if other != layer]
        chosen: list[Part] = []
        for part in sorted(arrivals, key=lambda each: -len(each.tokens)):  # stable: the first of equals
            foreign = any(plain(part.projection.name).startswith(other) for other in others)
            if not foreign and not any(bool(torch.isin(part.tokens, known.tokens).any()) for known in chosen):
                chosen.append(part)
        return sorted(chosen, key=lambda each: int(each.tokens[0]))

    def _join(self, tensors: Any, dim: int = 0, **_: Any) -> None:
        pair = isinstance(tensors, (list, tuple)) and len(tensors) == 2
        if pair and 0 < dim % tensors[0].ndim < tensors[0].ndim - 1:
            self.joins.append((tensors[0].shape[dim], tensors[1].shape[dim]))

    @torch.no_grad()
    def _arrive(self, given: Tensor, weight: Tensor, transposed: bool) -> None:
        for result in [result for result in self._found if result.patience > 0]:
            result.patience -= 1
            columns = result.columns
            if given.shape[-1] < columns:
                continue
            for first in sorted({0, given.shape[-1] - columns}):
                tokens = result.among(given[..., first : first + columns])
                place = self._place(weight) if len(tokens) else None
                if place is not None:
                    result.arrivals.append(Part(tokens, Projection(*place, transposed, first)))
                    break

    def _place(self, weight: Tensor) -> tuple[nn.Module, str, str] | None:
        for path, module in self.root.named_modules():
            for name, parameter in module._parameters.items():
                if parameter is weight:
                    return module, name, path
        return None


class _Result:
    """One result of attention, and what is known of where its rows went."""

    def __init__(self, mixed: Tensor):
        self.mixed = mixed
        self.columns = mixed.shape[1] * mixed.shape[3]
        self.patience = PATIENCE
        self.arrivals: list[Part] = []
        self._rows: dict[torch.dtype, Tensor] = {}

    def among(self, given: Tensor) -> Tensor:
        """The tokens [r] whose rows are among those of given [..., h d]."""
        if given.dtype not in self._rows:
            self._rows[given.dtype] = _fingerprints(self.mixed.transpose(1, 2).flatten(2).to(given.dtype))  # [b,n]
        rows = self._rows[given.dtype]
        there = torch.isin(rows, _fingerprints(given.reshape(-1, self.columns))) & (rows != 0)
        return there.any(0).cpu().nonzero()[:, 0]


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor, bool]:
    return input, weight, False


def _addmm(input: Tensor, mat1: Tensor, mat2: Tensor, **_: Any) -> tuple[Tensor, Tensor, bool]:
    return mat1, mat2, True


def _matmul(input: Tensor, other: Tensor, **_: Any) -> tuple[Tensor, Tensor, bool]:
    return input, other, True


_PRODUCTS: dict[Any, Any] = {F.linear: _linear, torch.addmm: _addmm} | dict.fromkeys(
    (torch.matmul, torch.mm, Tensor.matmul, Tensor.mm, Tensor.__matmul__), _matmul
)


def _fingerprints(rows: Tensor) -> Tensor:
    """A number for each row [..., k] that depends on every bit of it, and on nothing else; 0 for a row of zeros."""
    wide, whole = (torch.float64, torch.int64) if rows.dtype == torch.float64 else (torch.float32, torch.int32)
    bits = rows.to(wide).contiguous().view(whole).long()
    odd = torch.randint(-(2**62), 2**62, (rows.shape[-1],), generator=torch.Generator().manual_seed(0))
    return (bits * (2 * odd + 1).to(bits.device)).sum(-1)
