"""Which axes of a transformer's tensors hold the same channels: of any class, by shapes and where its heads stand.

A narrower student has shorter axes than its teacher, each of a space (spaces.py), or several copies of it. An axis of
equal length in both models is copied whole. Copies of a space come one after the other; the hidden units
of an MLP that runs beside an attention (FLUX's single blocks) come after its heads. Where the heads of an attention
stand is a row of layouts.py. What is not explained is refused.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from dit_shd.core.errors import UserError
from dit_shd.distillation.initialisation.depth import check_heads, module_of, source_of
from dit_shd.distillation.initialisation.folding import folded
from dit_shd.distillation.initialisation.layouts import Layout, is_transposed, layout_of
from dit_shd.distillation.initialisation.spaces import STREAM, Axes, Axis, Kind, Pair, Space
from dit_shd.models.shape import differing_heads

ADVICE = "use initialisation.weights=random"


def axes(student: nn.Module, teacher: nn.Module, layers: Mapping[str, str]) -> Axes:
    """Find the spaces of two models of one class.

    Args:
        student: Perhaps without weights.
        teacher: Perhaps without weights, too.
        layers: Student block -> teacher block.

    Raises:
        UserError: An axis that cannot be explained, heads of two widths, or a student wider than its teacher.
    """
    differing = differing_heads(student, teacher, lambda name: module_of(name, layers))
    if differing is not None and "heads of" in differing[0] and differing[1] > differing[2]:
        what, here, there = differing
        raise UserError(
            f"initialisation: {what} is {here} in the student and {there} in the teacher: heads are left out or "
            f"merged, and not made up; give it {there} or fewer, or {ADVICE}"
        )
    return _Finder(student, teacher, layers).find()


class _Finder:
    def __init__(self, student: nn.Module, teacher: nn.Module, layers: Mapping[str, str]):
        self.student, self.teacher, self.layers = student, teacher, layers
        self.transposed = frozenset(f"{name}.weight" for name, x in student.named_modules() if is_transposed(x))
        """Weights of maps that are kept as inputs by outputs."""
        self.tables = {f"{name}.weight" for name, module in student.named_modules() if isinstance(module, nn.Embedding)}
        """Whose rows are tokens or positions."""
        self.pairs = dict(self._pairs())
        self.maps = {name.removesuffix(".weight"): x for name, x in self.pairs.items() if name.endswith(".weight")}
        """Module -> the axes of its weight."""
        self.attentions: dict[str, tuple[Layout, str]] = {}
        """Attention -> how it is written, and its map to queries, or to queries, keys and values."""
        self.spaces: dict[str, Space] = {}
        self.known: dict[tuple[str, int], Axis] = {}
        """Axes that are not of the stream, by module."""
        self.values: set[str] = set()

    def find(self) -> Axes:
        if all(t == s for pairs in self.pairs.values() for t, s in pairs) and not self._mixes():
            check_heads(self.student, self.teacher, self.layers)
            of = {name: ((),) * len(pairs) for name, pairs in self.pairs.items()}
            return Axes({}, of, transposed=self.transposed)
        self.attentions = dict(self._attentions())
        widths = {self.maps[queries][1] for _, queries in self.attentions.values()}
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
        of = {name: self._of(name, pairs) for name, pairs in self.pairs.items()}
        return Axes(self.spaces, of, frozenset(self.values), self.transposed)

    def _mixes(self) -> bool:
        """Whether models of equal shapes have other heads, which can be mixed."""
        differing = differing_heads(self.student, self.teacher, lambda name: module_of(name, self.layers))
        if differing is None:
            return False
        path = differing[0].rpartition(" ")[2]
        module = self.student.get_submodule(path)
        layout = layout_of(module, self._inside(path))
        return layout is not None and layout.mixes(module)

    def _pairs(self) -> Iterator[tuple[str, list[Pair]]]:
        """The lengths of the axes of every tensor, by the student's names; of a map the outputs first."""
        available = folded(self.student, self.teacher)
        for name, tensor in self.student.state_dict().items():
            source = source_of(name, self.layers)
            shape = list(available[source].shape) if source in available else None
            if shape is None or len(shape) != tensor.ndim or any(t < s for t, s in zip(shape, tensor.shape)):
                raise UserError(
                    f"initialisation: {name} has shape {list(tensor.shape)} in the student, and {source} of the "
                    f"teacher {shape or 'nothing'}; wanted a student of its teacher's parts, none of them larger; "
                    f"{ADVICE}"
                )
            pairs = list(zip(shape, tensor.shape))
            yield name, pairs[::-1] if name in self.transposed else pairs

    def _attentions(self) -> Iterator[tuple[str, tuple[Layout, str]]]:
        """Each attention of the student, how it is written, and its map to queries."""
        for path, module in self.student.named_modules():
            kind, parts = type(module).__name__, self._inside(path)
            if "Att" not in kind or "Block" in kind or not parts:
                continue
            layout = layout_of(module, parts)
            others = [] if layout is None else self._unknown(path, parts, layout)
            if layout is None or others:
                raise UserError(
                    f"initialisation: {path} is attention of the class {kind}, whose heads are not known here"
                    f"{f' ({others[0]})' if others else ''}; {ADVICE}"
                )
            yield path, (layout, f"{path}.{layout.firsts(parts)[0]}")

    def _inside(self, path: str) -> list[str]:
        """The names inside of a module of what has tensors, if any is a map."""
        if not any(name.startswith(f"{path}.") for name in self.maps):
            return []
        inside = [name.removeprefix(f"{path}.") for name in self.pairs if name.startswith(f"{path}.")]
        return list(dict.fromkeys(name.removesuffix(".weight").removesuffix(".bias") for name in inside))

    def _unknown(self, path: str, parts: list[str], layout: Layout) -> list[str]:
        """Those parts of an attention of which its layout says nothing, or that are of other sizes than it says."""
        named = {*layout.firsts(parts), *layout.queries, *layout.keys, *layout.paired, *layout.out, *layout.tables}
        others = [part for part in parts if part not in named]
        if not layout.whole:
            return [name for name in others if any(t != s for t, s in self.maps.get(f"{path}.{name}", ()))]
        readers = [part for part in layout.out if part in parts]
        if others or len(readers) != 1:
            return others or [*layout.out]
        first, queries = self.maps[f"{path}.{layout.firsts(parts)[0]}"][0], self.maps[f"{path}.{readers[0]}"][1]
        copies = 3 if layout.fused else 1
        return [] if first == (copies * queries[0], copies * queries[1]) else [*layout.firsts(parts)]

    def _find_heads(self, path: str) -> None:
        """The axes of an attention, and of the MLP that is read by the same map as its heads."""
        models: list[Any] = [
            self.teacher.get_submodule(module_of(path, self.layers)),
            self.student.get_submodule(path),
        ]
        layout, first = self.attentions[path]
        readers = [f"{path}.{name}" for name in layout.out if f"{path}.{name}" in self.maps]
        queries, keys = self._lengths(path, layout, first, readers, models)
        widths = [layout.width_of(model, length) for model, length in zip(models, queries)]
        mixable = layout.mixes(models[1])
        if (widths[0] != widths[1] and not mixable) or keys[0] % widths[0] or keys[1] % widths[1]:
            raise UserError(
                f"initialisation: the heads of {path} are {widths[1]:g} wide in the student and {widths[0]:g} in the "
                f"teacher; whole heads are kept, so that {layout.setting} must be the same"
            )
        unit = int(widths[0])
        query_axis = self._space(path, "heads", queries, unit)
        heads = self.spaces[f"{path}.heads"]
        self.spaces[heads.name] = heads = replace(heads, student_unit=int(widths[1]), mixable=mixable)
        for name in (f"{path}.{table}" for table in layout.tables if f"{path}.{table}" in self.pairs):
            self.known[name, 1] = self._space(path, "tables", heads.counts)
        key_axis = query_axis if keys == queries else self._space(path, "keys", keys, unit)
        for names, axis, pair in ((layout.queries, query_axis, queries), (layout.keys, key_axis, keys)):
            for name in (f"{path}.{name}" for name in names if f"{path}.{name}" in self.maps):
                if self.maps[name][0] == pair:
                    self.known[name, 0] = axis
                elif self.maps[name][0][0] != self.maps[name][0][1]:
                    raise self._unexplained(f"{name}.weight", 0)
        self.values |= {f"{name}.weight" for name in (f"{path}.{name}" for name in layout.values) if name in self.maps}
        if layout.fused:
            self.known[first, 0] = ((f"{path}.heads", 3),)
            self.values.add(f"{first}.weight")
        for name in (f"{path}.{part}" for part in layout.paired if f"{path}.{part}" in self.maps):
            self.known[name, 0] = ((f"{path}.heads", 2),)
            self.values.add(f"{name}.weight")
        readers = readers or self._siblings(path, queries)
        if not readers:
            raise UserError(f"initialisation: no map reads the heads of {path}; {ADVICE}")
        for reader in readers:
            self.known[reader, 1] = query_axis
            if self.maps[reader][1] != queries:
                self._find_parallel(path, reader, queries)

    def _lengths(
        self, path: str, layout: Layout, first: str, readers: list[str], models: list[Any]
    ) -> tuple[Pair, Pair]:
        """The numbers of features of the query heads, and of the key-value heads, of both models."""
        if not layout.fused:
            return self.maps[first][0], self.maps[f"{path}.{layout.keys[0]}"][0]
        if not layout.inner:
            return self.maps[readers[0]][1], self.maps[readers[0]][1]
        teacher, student = (int(getattr(model, layout.inner)) for model in models)
        return (teacher, student), (teacher, student)

    def _siblings(self, path: str, queries: Pair) -> list[str]:
        """The map beside an attention without one of its own that reads its heads and more."""
        parent = path.rpartition(".")[0]
        beside = [name for name in self.maps if name.rpartition(".")[0] == parent and len(self.maps[name]) > 1]
        return [name for name in beside if all(t > q for t, q in zip(self.maps[name][1], queries))]

    def _find_parallel(self, path: str, reader: str, queries: Pair) -> None:
        """An MLP whose hidden units are read beside the heads, after them."""
        container, (layout, first) = reader.rpartition(".")[0], self.attentions[path]
        rest = _minus(self.maps[reader][1], queries, 1)
        hidden = self._space(container, "hidden", rest)
        if not layout.fused:
            written = self._find_writers(container, rest, hidden)
        else:
            rows = _minus(self.maps[first][0], queries, 3)
            copies = next((n for n in (1, 2) if rows == (n * rest[0], n * rest[1])), 0)
            self.known[first, 0] = ((f"{path}.heads", 3), (hidden[0][0], copies))
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

    def _space(self, module: str, kind: Kind, pair: Pair, unit: int = 1) -> Axis:
        """An axis of a new space."""
        self.spaces[f"{module}.{kind}"] = Space(module, kind, *pair, unit, unit)
        return ((f"{module}.{kind}", 1),)

    def _of(self, name: str, pairs: list[Pair]) -> tuple[Axis, ...]:
        """The axes of one tensor."""
        module = name.rpartition(".")[0] if name.endswith((".weight", ".bias")) else name
        axes: list[Axis] = []
        for dim, pair in enumerate(pairs):
            axis = self.known.get((module, dim), ())
            if not axis and pair[0] != pair[1]:
                axis = self._of_stream(name, dim, pairs)
            axes.append(axis)
        return tuple(axes)

    def _of_stream(self, name: str, dim: int, pairs: list[Pair]) -> Axis:
        """One copy of the stream, or several where those can be: of a map's outputs, and of its inputs in a block."""
        copies, rest = divmod(pairs[dim][0], self.width[0])
        is_map = name.endswith((".weight", ".bias"))
        several = is_map and (dim == 0 or any(name.startswith(f"{block}.") for block in self.layers))
        last = (is_map and dim < 2 and not (name in self.tables and dim == 0)) or dim == len(pairs) - 1
        if rest or pairs[dim][1] != copies * self.width[1] or not last or (copies > 1 and not several):
            raise self._unexplained(name, dim)
        return ((STREAM, copies),)

    def _unexplained(self, name: str, dim: int) -> UserError:
        teacher, student = self.pairs[name][dim]
        return UserError(
            f"initialisation: axis {dim} of {name} has {student} entries in the student and {teacher} in the teacher, "
            f"which is neither heads, nor an MLP's, nor the stream's {self.width[1]} of {self.width[0]}; tokens (the "
            f"vocabulary), positions, classes and latent channels must be as many as the teacher's, or {ADVICE}"
        )


def _minus(lengths: Pair, parts: Pair, times: int) -> Pair:
    """What is left of an axis without some copies of a part."""
    return lengths[0] - times * parts[0], lengths[1] - times * parts[1]
