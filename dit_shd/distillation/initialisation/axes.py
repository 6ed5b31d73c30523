"""Which axes of a transformer's tensors hold the same channels: of any class of diffusers, by shapes and a few names.

A narrower student has shorter axes than its teacher. Each is an axis of one of these spaces, or several copies of it:

stream          the residual stream, and all that has its width: the input of attention
LAYER.heads     the features of the query heads of an attention, in whole heads
LAYER.keys      those of its key-value heads, where these are fewer
MODULE.hidden   the hidden units of an MLP

An axis of equal length in both models is copied whole. Copies of a space come one after the other; the hidden units
of an MLP that runs beside an attention (FLUX's single blocks) come after its heads. What is not explained is refused.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import nn

from dit_shd.core.errors import UserError
from dit_shd.distillation.initialisation.depth import check_heads, source_of

STREAM: Literal["stream"] = "stream"
QUERIES = ("to_q", "add_q_proj", "norm_q", "norm_added_q")
KEYS = ("to_k", "to_v", "add_k_proj", "add_v_proj", "norm_k", "norm_added_k")
VALUES = ("to_v", "add_v_proj")
OUT = ("to_out.0", "to_out", "to_add_out")
"""Maps of an attention of diffusers: from tokens to heads (joint attention has them for the text, too), and back."""
FUSED = "qkv"
"""In the name of a map to queries, keys and values at once, and then to an MLP."""
ADVICE = "use initialisation.weights=random"

Pair = tuple[int, int]
"""Lengths of an axis in the teacher and in the student."""
Axis = tuple[tuple[str, int], ...]
"""Spaces of an axis in their order, each with its number of copies; empty: equal in both models."""


@dataclass(frozen=True)
class Space:
    """Channels that several tensors share, so that they are kept or cut together."""

    module: str
    """Of the student: an attention or an MLP; empty for the stream."""
    kind: Literal["stream", "heads", "keys", "hidden"]
    teacher: int
    """Number of channels."""
    student: int
    unit: int = 1
    """Neighbouring channels that stay together: the width of a head."""

    @property
    def name(self) -> str:
        """Its key in Axes.spaces."""
        return f"{self.module}.{self.kind}" if self.module else self.kind


@dataclass(frozen=True)
class Axes:
    """The spaces of a student and its teacher, and where they stand in their tensors."""

    spaces: dict[str, Space] = field(default_factory=dict)
    of: dict[str, tuple[Axis, ...]] = field(default_factory=dict)
    """Of each tensor of the student, by its name."""

    def __getitem__(self, space: str) -> Space:
        return self.spaces[space]

    def standing(self, space: Space, dim: int) -> Iterator[tuple[str, int, int]]:
        """Weights of two axes or more that have a space on axis `dim`: their names, where it begins, its copies."""
        for name, axes in self.of.items():
            start = 0
            for part, copies in axes[dim] if len(axes) > 1 else ():
                if part == space.name:
                    yield name, start, copies
                start += self.spaces[part].teacher * copies


def axes(student: nn.Module, teacher: nn.Module, layers: Mapping[str, str]) -> Axes:
    """Find the spaces of two models of one class.

    Args:
        student: Perhaps without weights.
        teacher: Perhaps without weights, too.
        layers: Student block -> teacher block.

    Raises:
        UserError: An axis that cannot be explained, heads of two widths, or a student wider than its teacher.
    """
    return _Finder(student, teacher, layers).find()


class _Finder:
    def __init__(self, student: nn.Module, teacher: nn.Module, layers: Mapping[str, str]):
        self.student, self.teacher, self.layers = student, teacher, layers
        self.pairs = dict(self._pairs())
        self.maps = {name.removesuffix(".weight"): x for name, x in self.pairs.items() if name.endswith(".weight")}
        """Module -> the axes of its weight."""
        self.attentions: dict[str, str] = {}
        """Attention -> its map to queries, or to queries, keys and values."""
        self.spaces: dict[str, Space] = {}
        self.known: dict[tuple[str, int], Axis] = {}
        """Axes that are not of the stream, by module."""

    def find(self) -> Axes:
        if all(t == s for pairs in self.pairs.values() for t, s in pairs):
            check_heads(self.student, self.teacher, self.layers)
            return Axes({}, {name: ((),) * len(pairs) for name, pairs in self.pairs.items()})
        self.attentions = dict(self._attentions())
        widths = {self.maps[queries][1] for queries in self.attentions.values()}
        if len(widths) != 1:
            raise UserError(
                f"initialisation: wanted one width of the residual stream, found {sorted(widths)}; {ADVICE}"
            )
        (self.width,) = widths
        if self.width[0] != self.width[1]:
            self.spaces[STREAM] = Space("", STREAM, *self.width)
        for path in self.attentions:
            self._find_heads(path)
        for path, pairs in self.maps.items():
            if len(pairs) > 1 and (path, 1) not in self.known and pairs[1] != self.width:
                self._find_hidden(path, pairs[1])
        return Axes(self.spaces, {name: self._of(name, pairs) for name, pairs in self.pairs.items()})

    def _pairs(self) -> Iterator[tuple[str, list[Pair]]]:
        """The lengths of the axes of every tensor, by the student's names."""
        available = self.teacher.state_dict()
        for name, tensor in self.student.state_dict().items():
            source = source_of(name, self.layers)
            shape = list(available[source].shape) if source in available else None
            if shape is None or len(shape) != tensor.ndim or any(t < s for t, s in zip(shape, tensor.shape)):
                raise UserError(
                    f"initialisation: {name} has shape {list(tensor.shape)} in the student, and {source} of the "
                    f"teacher {shape or 'nothing'}; wanted a student of its teacher's parts, none of them larger; "
                    f"{ADVICE}"
                )
            yield name, list(zip(shape, tensor.shape))

    def _attentions(self) -> Iterator[tuple[str, str]]:
        """Each attention of the student, and its map to queries, or to queries, keys and values."""
        for path, module in self.student.named_modules():
            kind, maps = type(module).__name__, self._inside(path)
            if "Att" not in kind or "Block" in kind or not maps:
                continue
            queries = [name for name in maps if name == f"{path}.to_q" or FUSED in name.removeprefix(path)]
            parts = {f"{path}.{name}" for name in (*QUERIES, *KEYS, *OUT)} | set(queries)
            others = [name for name in maps if name not in parts and any(t != s for t, s in self.maps[name])]
            sizes = ["heads"] if f"{path}.to_q" in maps else ["heads", "inner_dim"]
            numbers = all(isinstance(getattr(module, size, None), int) for size in sizes)
            if len(queries) != 1 or others or not numbers:
                raise UserError(
                    f"initialisation: {path} is attention of the class {kind}, whose heads are not known here"
                    f"{f' ({others[0]})' if others else ''}; {ADVICE}"
                )
            yield path, queries[0]

    def _inside(self, path: str) -> list[str]:
        """The maps inside of a module."""
        return [name for name in self.maps if name.startswith(f"{path}.")]

    def _find_heads(self, path: str) -> None:
        """The axes of an attention, and of the MLP that is read by the same map as its heads."""
        models: list[Any] = [
            self.teacher.get_submodule(source_of(f"{path}.", self.layers)[:-1]),
            self.student.get_submodule(path),
        ]
        if f"{path}.to_q" in self.maps:
            queries, keys = self.maps[f"{path}.to_q"][0], self.maps[f"{path}.to_k"][0]
        else:
            queries = keys = (int(models[0].inner_dim), int(models[1].inner_dim))
        widths = [length / model.heads for length, model in zip(queries, models)]
        if widths[0] != widths[1] or keys[0] % widths[0] or keys[1] % widths[1]:
            raise UserError(
                f"initialisation: the heads of {path} are {widths[1]:g} wide in the student and {widths[0]:g} in the "
                "teacher; whole heads are kept, so that attention_head_dim must be the same"
            )
        unit = int(widths[0])
        query_axis = self._space(path, "heads", queries, unit)
        key_axis = query_axis if keys == queries else self._space(path, "keys", keys, unit)
        for names, axis in ((QUERIES, query_axis), (KEYS, key_axis)):
            for name in names:
                if self.maps.get(f"{path}.{name}", [(unit, unit)])[0] != (unit, unit):
                    self.known[f"{path}.{name}", 0] = axis
        readers = [f"{path}.{name}" for name in OUT if f"{path}.{name}" in self.maps] or self._siblings(path, queries)
        if not readers:
            raise UserError(f"initialisation: no map reads the heads of {path}; {ADVICE}")
        for reader in readers:
            self.known[reader, 1] = query_axis
            if self.maps[reader][1] != queries:
                self._find_parallel(path, reader, queries)

    def _siblings(self, path: str, queries: Pair) -> list[str]:
        """The map beside an attention without one of its own that reads its heads and more."""
        parent = path.rpartition(".")[0]
        beside = [name for name in self.maps if name.rpartition(".")[0] == parent and len(self.maps[name]) > 1]
        return [name for name in beside if all(t > q for t, q in zip(self.maps[name][1], queries))]

    def _find_parallel(self, path: str, reader: str, queries: Pair) -> None:
        """An MLP whose hidden units are read beside the heads, after them."""
        container, fused = reader.rpartition(".")[0], self.attentions[path]
        rest = _minus(self.maps[reader][1], queries, 1)
        hidden = self._space(container, "hidden", rest)
        if fused == f"{path}.to_q":
            written = self._find_writers(container, rest, hidden)
        else:
            rows = _minus(self.maps[fused][0], queries, 3)
            copies = next((n for n in (1, 2) if rows == (n * rest[0], n * rest[1])), 0)
            self.known[fused, 0] = ((f"{path}.heads", 3), (hidden[0][0], copies))
            written = copies > 0
        if not written:
            raise self._unexplained(f"{reader}.weight", 1)
        self.known[reader, 1] = (*self.known[reader, 1], *hidden)

    def _find_hidden(self, path: str, pair: Pair) -> None:
        """An MLP whose second map is `path`: the maps beside it write what it reads."""
        container = path.rpartition(".")[0]
        if pair[0] != pair[1] and container:
            hidden = self._space(container, "hidden", pair)
            if self._find_writers(container, pair, hidden):
                self.known[path, 1] = hidden
            else:
                del self.spaces[f"{container}.hidden"]

    def _find_writers(self, container: str, pair: Pair, hidden: Axis) -> bool:
        """Note the maps right inside of a module whose outputs are hidden units, once or twice (gated)."""
        writers = False
        for name, pairs in self.maps.items():
            inside = re.sub(r"\b\d+\b", "", name.removeprefix(f"{container}.")).strip(".")
            beside = name.startswith(f"{container}.") and "." not in inside
            if not beside or (len(pairs) > 1 and pairs[0] == self.width):
                continue
            for copies in (1, 2):
                if pairs[0] == (copies * pair[0], copies * pair[1]):
                    self.known[name, 0] = ((hidden[0][0], copies),)
                    writers = True
        return writers

    def _space(self, module: str, kind: Literal["heads", "keys", "hidden"], pair: Pair, unit: int = 1) -> Axis:
        """An axis of a new space."""
        self.spaces[f"{module}.{kind}"] = Space(module, kind, *pair, unit)
        return ((f"{module}.{kind}", 1),)

    def _of(self, name: str, pairs: list[Pair]) -> tuple[Axis, ...]:
        """The axes of one tensor."""
        module = name.rpartition(".")[0]
        axes: list[Axis] = []
        for dim, pair in enumerate(pairs):
            axis = self.known.get((module, dim), ()) if name.endswith((".weight", ".bias")) else ()
            if not axis and pair[0] != pair[1]:
                axis = self._of_stream(name, dim, pairs)
            axes.append(axis)
        return tuple(axes)

    def _of_stream(self, name: str, dim: int, pairs: list[Pair]) -> Axis:
        """One copy of the stream, or several where those can be: of a map's outputs, and of its inputs in a block."""
        copies, rest = divmod(pairs[dim][0], self.width[0])
        is_map = name.endswith((".weight", ".bias"))
        several = is_map and (dim == 0 or any(name.startswith(f"{block}.") for block in self.layers))
        last = (is_map and dim < 2) or dim == len(pairs) - 1
        if rest or pairs[dim][1] != copies * self.width[1] or not last or (copies > 1 and not several):
            raise self._unexplained(name, dim)
        return ((STREAM, copies),)

    def _unexplained(self, name: str, dim: int) -> UserError:
        teacher, student = self.pairs[name][dim]
        return UserError(
            f"initialisation: axis {dim} of {name} has {student} entries in the student and {teacher} in the teacher, "
            f"which is neither heads, nor an MLP's, nor the stream's {self.width[1]} of {self.width[0]}; {ADVICE}"
        )


def _minus(lengths: Pair, parts: Pair, times: int) -> Pair:
    """What is left of an axis without some copies of a part."""
    return lengths[0] - times * parts[0], lengths[1] - times * parts[1]
