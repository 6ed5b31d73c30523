"""The channels that a narrower student shares between its tensors, and where they stand in these.

A narrower student has shorter axes than its teacher. Each is an axis of one of these spaces, or several copies of it:

stream          the residual stream, and all that has its width: the input of attention
LAYER.heads     the features of the query heads of an attention, in whole heads
LAYER.keys      those of its key-value heads, where these are fewer
LAYER.tables    what is one for each of its query heads
MODULE.hidden   the hidden units of an MLP
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

STREAM: Literal["stream"] = "stream"

Kind = Literal["stream", "heads", "keys", "tables", "hidden"]
Pair = tuple[int, int]
"""Lengths of an axis in the teacher and in the student."""
Axis = tuple[tuple[str, int], ...]
"""Spaces of an axis in their order, each with its number of copies; empty: equal in both models."""


@dataclass(frozen=True)
class Space:
    """Channels that several tensors share, so that they are kept or cut together."""

    module: str
    """Of the student: an attention or an MLP; empty for the stream."""
    kind: Kind
    teacher: int
    """Number of channels."""
    student: int
    unit: int = 1
    """Neighbouring channels that stay together: the width of a head."""
    student_unit: int = 1
    """Of the student's."""
    mixable: bool = False
    """Whether the features of heads can be mixed (layouts.py)."""

    @property
    def counts(self) -> Pair:
        """The numbers of heads of the teacher and of the student."""
        return self.teacher // self.unit, self.student // self.student_unit

    @property
    def is_narrower(self) -> bool:
        """Whether the student lacks channels, or has heads of another width."""
        return self.student < self.teacher or self.student_unit != self.unit

    @property
    def name(self) -> str:
        """Its key in Axes.spaces."""
        return f"{self.module}.{self.kind}" if self.module else self.kind


@dataclass(frozen=True)
class Axes:
    """The spaces of a student and its teacher, and where they stand in their tensors."""

    spaces: dict[str, Space] = field(default_factory=dict)
    of: dict[str, tuple[Axis, ...]] = field(default_factory=dict)
    """Of each tensor of the student, by its name; of a map's weight the outputs first, however it is kept."""
    values: frozenset[str] = frozenset()
    """Weights of the maps to the values of heads; of one that is fused they are the last copy."""
    transposed: frozenset[str] = frozenset()
    """Weights that are kept as inputs by outputs."""

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
