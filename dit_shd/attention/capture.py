"""What one softmax attention layer worked with, and how it is taken from a running model.

    with capture(teacher) as t, capture(student) as s:
        ...                                     # run both
        t["de_blocks.0.attn"].query             # [b,h,n,d]

Nothing is computed here and no map is stored: a Capture refers to the tensors the layer already had. The student's
stay in the autograd graph, so a loss on them trains the student.
"""

import fnmatch
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from dit_shd.attention.bias import Bias, DenseBias
from dit_shd.attention.softmax import softmax
from dit_shd.errors import UserError


@dataclass(frozen=True, eq=False)
class Capture:
    """One attention layer in one forward pass.

    Scores are S = scale * q k^T + bias, the map is A = softmax(S) over the keys, head i contributes
    A_i (V_i W_i^O) to the layer's output (arXiv 2502.07436, section 3).
    """

    query: Tensor
    """[b,h,n,d]"""
    key: Tensor
    """[b,h,m,d]"""
    value: Tensor
    """[b,h,m,d]"""
    scale: float
    bias: Bias | None = None
    causal: bool = False
    """Query i sees keys 0..i only (aligned at the first token, as in PyTorch's is_causal)."""
    out: Tensor | None = None
    """W^O by head: [h,d,e]."""

    def __post_init__(self) -> None:
        b, h, n, d = self.query.shape
        if self.key.shape[:2] != (b, h) or self.key.shape[3] != d or self.value.shape[:3] != self.key.shape[:3]:
            raise ValueError(
                f"capture: wanted query [b,h,n,d], key [b,h,m,d] and value [b,h,m,d], found "
                f"{tuple(self.query.shape)}, {tuple(self.key.shape)} and {tuple(self.value.shape)}"
            )
        wanted = (b, h, n, self.key.shape[2])
        if self.bias is not None and any(x not in (1, y) for x, y in zip(self.bias.shape(), wanted)):
            raise ValueError(f"capture: wanted a bias that broadcasts to {wanted}, found {self.bias.shape()}")

    @property
    def heads(self) -> int:
        return self.query.shape[1]

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(b, h, n, m)"""
        return (*self.query.shape[:3], self.key.shape[2])  # type: ignore[return-value]

    def scores(self, rows: slice = slice(None)) -> Tensor:
        """S[b,h,r,m] of some query rows, in float32 (float64 if the query is)."""
        wide = torch.promote_types(self.query.dtype, torch.float32)
        scores = (self.query[:, :, rows].to(wide) @ self.key.to(wide).transpose(2, 3)) * self.scale
        if self.bias is not None:
            scores = scores + self.bias.rows(rows)
        if self.causal:
            n, m = self.query.shape[2], self.key.shape[2]
            at = torch.arange(n, device=scores.device)[rows]
            scores = scores.masked_fill(torch.arange(m, device=scores.device) > at[:, None], float("-inf"))
        return scores

    def map(self, rows: slice = slice(None), temperature: float = 1.0) -> Tensor:
        """softmax(S / temperature)[b,h,r,m]; a row with every key masked is all zeros, as SDPA has it."""
        masks = self.causal or isinstance(self.bias, DenseBias)
        return softmax(self.scores(rows), temperature, masks)

    def detach(self) -> "Capture":
        """The same without a graph."""
        return replace(
            self,
            query=self.query.detach(),
            key=self.key.detach(),
            value=self.value.detach(),
            bias=None if self.bias is None else self.bias.detach(),
            out=None if self.out is None else self.out.detach(),
        )


Captures = dict[str, Capture]
"""Layer name -> Capture, in the order in which the layers ran."""


@runtime_checkable
class Recordable(Protocol):
    """An attention module of ours: it hands a Capture to `recorder` whenever that is not None."""

    recorder: "Recorder | None"


class Recorder:
    """Takes the Captures of one attention module and files them under its name; hands them on to `outer`, if any."""

    def __init__(self, name: str, captures: Captures, outer: "Recorder | None" = None):
        self.name, self.captures, self.outer = name, captures, outer

    def __call__(self, capture: Capture) -> None:
        self.captures[self.name] = capture
        if self.outer is not None:
            self.outer(capture)


def _plain(name: str) -> str:
    """A module's name without what DDP and torch.compile put before it."""
    return name.removeprefix("module.").removeprefix("_orig_mod.")


@contextmanager
def capture(model: nn.Module, layers: Sequence[str] | None = None) -> Iterator[Captures]:
    """Record the attention layers of `model`; after each forward the yielded dict holds that forward's Captures.

    Args:
        model: a model with attention modules of ours (MDTv2).
        layers: names or patterns (`de_blocks.*`) of attention modules; all of them by default.

    Raises:
        UserError: nothing to capture, or a pattern that fits no layer.
    """
    modules = {_plain(n): m for n, m in model.named_modules() if isinstance(m, Recordable) and isinstance(m, nn.Module)}
    if not modules:
        raise UserError(f"capture: {type(model).__name__} has no attention module that can be recorded")
    for pattern in layers or ():
        if not fnmatch.filter(modules, pattern):
            raise UserError(f"capture: no layer fits '{pattern}'. Layers: {', '.join(modules)}")
    chosen = {n: m for n, m in modules.items() if layers is None or any(fnmatch.fnmatch(n, p) for p in layers)}
    captures: Captures = {}
    before = {name: module.recorder for name, module in chosen.items()}
    fresh = model.register_forward_pre_hook(lambda *_: captures.clear())
    for name, module in chosen.items():
        module.recorder = Recorder(name, captures, before[name])
    try:
        yield captures
    finally:
        fresh.remove()
        for name, module in chosen.items():
            module.recorder = before[name]
