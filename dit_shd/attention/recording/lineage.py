"""Which of a model's inputs the tokens of a tensor come from, followed through one forward.

Self- and cross-attention, image and text are told apart by that, never by lengths or names: a tensor's lineage is the
input that its tokens are (not everything that had an influence on them), and where tokens of several inputs were
joined, the runs of each.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from dit_shd.attention.recording.products import is_product
from dit_shd.attention.recording.sdpa_calls import ATTENTION
from dit_shd.attention.recording.storage import storage
from dit_shd.attention.recording.tokens import keyed_tensors, tensors_in

Streams = frozenset[str]
"""Names of inputs."""
Segments = tuple[tuple[int, Streams], ...]
"""Lengths of the runs of tokens in a sequence, and where each comes from; empty if nothing was joined."""
INPUT, ENTERED, OWN = range(3)
"""How sure it is: an input of the model; something unknown that a module was given; a parameter."""


@dataclass(frozen=True)
class Lineage:
    """Where the tokens of a tensor come from."""

    streams: Streams
    segments: Segments = ()
    level: int = INPUT

    @property
    def tokens(self) -> int:
        """How many tokens the segments are, together."""
        return sum(length for length, _ in self.segments)


class Lineages:
    """The lineage of every tensor of a forward."""

    def __init__(self) -> None:
        self._known: Any = WeakIdKeyDictionary()
        self._births = 0

    def of(self, tensor: Any) -> Lineage | None:
        """Of a tensor, if anything is known of it."""
        if not isinstance(tensor, Tensor):
            return None
        known = self._known.get(tensor)
        if known is None and isinstance(tensor, nn.Parameter):
            return Lineage(frozenset({"a parameter"}), (), OWN)
        base = tensor._base if known is None else None
        base = None if base is None else self._known.get(base)
        return known if base is None else Lineage(base.streams, (), base.level)

    def name(self, value: Any, name: str, level: int = INPUT) -> None:
        """Tensors of an input, or in it, that nothing is known of come from there."""
        for key, tensor in keyed_tensors(value):
            if tensor not in self._known and not isinstance(tensor, nn.Parameter):
                self._known[tensor] = Lineage(frozenset({f"{name}{key}"}), (), level)

    def inherit(self, output: Any, source: Any) -> None:
        """What a module gives and nothing is known of comes from what it was given first."""
        lineage = self.of(source)
        if lineage is not None:
            for tensor in tensors_in(output):
                if tensor not in self._known:
                    self._known[tensor] = Lineage(lineage.streams, (), lineage.level)

    def all(self, value: Any) -> list[Lineage]:
        """Of all the tensors in a value of which something is known."""
        return [lineage for tensor in tensors_in(value) if (lineage := self.of(tensor)) is not None]

    def follow(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        """A function has run."""
        inputs = tensors_in((args, tuple(kwargs.values())))
        if not inputs:
            return
        if function in _JOINS:
            self._join(args, kwargs, result)
        elif function is F.embedding:
            self._embed(inputs[0], result)
        elif result is None and getattr(function, "__name__", "") == "__setitem__":
            self._merge(inputs[0], inputs)
        else:
            for output in tensors_in(result):
                if output.is_floating_point() or not inputs[0].is_floating_point():
                    self._derive(function, inputs, output)

    def _embed(self, tokens: Tensor, result: Any) -> None:
        """Each embedding of an input is a sequence of its own: encoder and decoder may be given the same words."""
        lineage = self.of(tokens)
        if lineage is not None and isinstance(result, Tensor):
            self._births += 1
            name = f"{'+'.join(sorted(lineage.streams))}, embedding {self._births}"
            self._known[result] = Lineage(frozenset({name}), (), lineage.level)

    def _merge(self, target: Tensor, inputs: Sequence[Tensor]) -> None:
        """Some entries of a tensor are written; its own lineage stays, if that is as sure as what is written."""
        known = [lineage for x in inputs if (lineage := self.of(x)) is not None]
        if known:
            level = min(each.level for each in known)
            streams, previous = _union(each for each in known if each.level == level), self.of(target)
            kept = previous.segments if previous is not None and previous.level == level else ()
            self._known[target] = Lineage(streams, kept, level)

    def _join(self, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        tensors: Any = args[0] if args else kwargs.get("tensors", ())
        if not isinstance(tensors, (list, tuple)) or not isinstance(result, Tensor):
            return
        parts = [x for x in tensors if isinstance(x, Tensor) and x.ndim == result.ndim]  # an empty cache has none
        dim = args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis", 0))
        known = [self.of(x) for x in parts]
        present = [each for each in known if each is not None]
        if not present:
            return
        level = min(each.level for each in present)
        streams = _union(each for each in present if each.level == level)
        dim = dim % result.ndim
        along_tokens = 0 < dim < result.ndim - 1 or (result.ndim == 2 and dim == 0)
        if len(set(known)) == 1 and not along_tokens:
            self._known[result] = present[0]
        elif not along_tokens:
            segments = next((each.segments for each in present if each.segments), ())
            self._known[result] = Lineage(streams, segments, level)
        else:
            runs = [run for x, each in zip(parts, known) for run in _runs(x.shape[dim], each)]
            self._known[result] = Lineage(streams, _compact(runs), level)

    def _derive(self, function: Any, inputs: Sequence[Tensor], output: Tensor) -> None:
        known = [(x, lineage) for x in inputs if (lineage := self.of(x)) is not None]
        if not known:
            return
        if function in ATTENTION or is_product(function) or function in _ROWS_FIRST:
            first = known[:1] if function in ATTENTION else [each for each in known if each[1].level < OWN] or known
            self._known[output] = _cut(*first[0], output)
            return
        alike = [(x, lineage) for x, lineage in known if x.shape == output.shape] or known
        level = min(lineage.level for _, lineage in alike)
        alike = [(x, lineage) for x, lineage in alike if lineage.level == level]
        if alike[0][0].shape != output.shape:
            alike = [max(alike, key=lambda each: each[0].numel())]
        cut = [_cut(x, lineage, output) for x, lineage in alike]
        segments = next((each.segments for each in cut if each.segments), ())
        self._known[output] = Lineage(_union(cut), segments, level)


def _cut(source: Tensor, lineage: Lineage, output: Tensor) -> Lineage:
    """The lineage of what was made of one tensor, which may be some of its tokens."""
    n = lineage.tokens
    if not lineage.segments or output.is_nested:
        return lineage
    if source.ndim == output.ndim and storage(source) == storage(output):
        changed = [i for i in range(source.ndim) if source.shape[i] != output.shape[i]]
        if len(changed) == 1 and source.shape[changed[0]] == n and source.stride(changed[0]):
            start = int(output.storage_offset() - source.storage_offset()) // source.stride(changed[0])
            segments = _slice(lineage.segments, start, start + output.shape[changed[0]])
            streams = frozenset[str]().union(*(streams for _, streams in segments))
            return Lineage(streams or lineage.streams, segments if len(segments) > 1 else (), lineage.level)
    return lineage if n in output.shape else Lineage(lineage.streams, (), lineage.level)


def _slice(segments: Segments, start: int, stop: int) -> Segments:
    pieces: list[tuple[int, Streams]] = []
    at = 0
    for length, streams in segments:
        kept = min(stop, at + length) - max(start, at)
        if kept > 0:
            pieces.append((kept, streams))
        at += length
    return tuple(pieces)


def _runs(length: int, lineage: Lineage | None) -> Segments:
    if lineage is None:
        return ((length, frozenset()),)
    if lineage.tokens == length:
        return lineage.segments
    return ((length, frozenset() if lineage.level == OWN else lineage.streams),)


def _compact(runs: Sequence[tuple[int, Streams]]) -> Segments:
    """Neighbours of the same streams as one; nothing, if that is all."""
    merged: list[tuple[int, Streams]] = []
    for length, streams in runs:
        if merged and merged[-1][1] == streams:
            merged[-1] = (merged[-1][0] + length, streams)
        else:
            merged.append((length, streams))
    return tuple(merged) if len(merged) > 1 else ()


def _union(lineages: Any) -> Streams:
    return frozenset[str]().union(*(each.streams for each in lineages))


_JOINS = {torch.cat, torch.concat, torch.concatenate}
_ROWS_FIRST = {torch.bmm, Tensor.bmm, torch.ops.aten.bmm.default}
