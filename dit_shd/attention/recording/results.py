"""One result of attention, and the rows by which it is known again further on."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn

from dit_shd.attention.recording.fingerprints import fingerprints
from dit_shd.attention.recording.projection import Projection
from dit_shd.attention.recording.storage import same_memory

PATIENCE = 32
"""How many matrix products after an attention result its projection may come."""
_MOVES = {
    "__get__", "__getitem__", "cat", "chunk", "clone", "concat", "contiguous", "detach", "dropout", "expand", "flatten",
    "float", "half", "bfloat16", "index_select", "movedim", "narrow", "permute", "reshape", "split", "squeeze",
    "swapaxes", "tensor_split", "to", "transpose", "type", "type_as", "unbind", "unflatten", "unsqueeze", "view",
}  # fmt: skip
"""Functions that leave rows what they are."""
_SUMS = {"add", "radd", "sub"}
"""Functions after which a head's part of a sum still goes through W^O."""


@dataclass(frozen=True, eq=False)
class Part:
    """Some query tokens that share a projection."""

    tokens: Tensor
    """Their positions [r], in order."""
    projection: Projection


class Known:
    """Tensors known by identity, kept alive by nobody here."""

    def __init__(self, *tensors: Tensor):
        self._refs = {id(x): ref(x) for x in tensors}

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Know these, too."""
        self._refs.update((id(x), ref(x)) for x in tensors)

    def __contains__(self, x: object) -> bool:
        known = self._refs.get(id(x))
        return known is not None and known() is x


class AttentionResult:
    """One result of attention, and what is known of where its rows went.

    Args:
        made: The tensor that attention gave.
        mixed: Its numbers as [b,h,n,d].
    """

    def __init__(self, made: Tensor, mixed: Tensor):
        self.made, self.mixed = made, mixed
        self.columns = mixed.shape[1] * mixed.shape[3]
        self.patience = PATIENCE
        self.arrivals: list[Part] = []
        self.reason = ""
        """Why it arrives nowhere, if something was seen."""
        self._rows: dict[torch.dtype, Tensor] = {}
        self._version = None if made.is_inference() else made._version
        if self._version is None:  # whether it is changed in place later on will not be known
            self._fingerprint(made.dtype)
        self._moved = Known(made)
        """Itself, in other shapes, and what fixed functions and sums made of it."""
        self.changed = ""
        """The first function that changed its rows, and in which module."""
        self._gated = Known()
        """What a function, sums aside, made of it and of something trainable, in all shapes."""

    def is_of(self, mixed: Tensor) -> bool:
        """Whether it is this one."""
        return self.made is mixed or (mixed.ndim == 3 and same_memory(self.made, mixed))

    @property
    def overwritten(self) -> bool:
        """Whether it was changed in place after attention gave it."""
        return self._version is not None and self.made._version != self._version

    def among(self, given: Tensor, prints: Tensor | None = None) -> Tensor:
        """The tokens [r] whose rows are among those of given [..., h d], whose fingerprints may be at hand."""
        if self.overwritten:
            return torch.zeros(0, dtype=torch.long)
        rows = self._fingerprint(given.dtype)  # [b,n]
        there = torch.isin(rows, fingerprints(given) if prints is None else prints) & (rows != 0)
        return there.any(0).cpu().nonzero()[:, 0]

    def _fingerprint(self, dtype: torch.dtype) -> Tensor:
        if dtype not in self._rows:
            self._rows[dtype] = fingerprints(self.mixed.transpose(1, 2).flatten(2).to(dtype))
        return self._rows[dtype]

    def follow(self, function: Any, args: tuple[Any, ...], made: Any, where: str) -> None:
        """A function has run in a module: note what moves the rows, and the first that changes them, for the reason."""
        given = [x for each in args for x in (each if isinstance(each, (list, tuple)) else [each])]
        gated = any(x in self._gated for x in given)
        if not gated and not any(x in self._moved for x in given):
            return
        name = getattr(function, "__name__", "")
        results = [x for x in (made if isinstance(made, (list, tuple)) else [made]) if isinstance(x, Tensor)]
        if name == "dropout" and results and not same_memory(given[0], results[0]):
            self.changed = self.changed or f"dropout in {where or 'the model'} (call .eval() of a teacher)"
        if name in _MOVES:
            (self._gated if gated else self._moved).add(results)
        elif any(x.is_floating_point() for x in results):
            self.changed = self.changed or f"{name.strip('_')} in {where or 'the model'}"
            trained = name.strip("_") not in _SUMS and any(_trains(x) and x not in self._moved for x in given)
            (self._gated if gated or trained else self._moved).add(results)

    def gated(self, x: Any) -> bool:
        """Whether rows that a tensor holds went through a function of something trainable.

        They may be what they were in this forward only: 1 + gate, with a gate that begins at zero.
        """
        return x in self._gated


def _trains(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point() and (x.requires_grad or isinstance(x, nn.Parameter))
