"""What a loss reads of one model's forward, and what it returns."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from torch import Tensor

from dit_shd.attention.capture import Capture
from dit_shd.attention.recording.writes import Mark, marks_of, written
from dit_shd.core.errors import UserError
from dit_shd.tasks import Output


class Reads(enum.Enum):
    """A part of a model's forward that a loss reads."""

    OUTPUT = "output"
    """What both models predict. Where no loss reads it, the teacher stops after the last layer needed."""
    ATTENTION = "attention"
    """Captures of attention layers."""
    ATTENTION_OUTPUT = "attention output"
    """Outputs of attention modules [b,n,e]."""
    HIDDEN = "hidden"
    """Outputs of blocks [b,n,e]; of blocks with a stream for text, the image's."""


LAYERS = frozenset({Reads.ATTENTION, Reads.ATTENTION_OUTPUT, Reads.HIDDEN})
"""The kinds of layers; each has its names and its order."""


class Needs(enum.Enum):
    """What a loss wants both models to have in common."""

    EQUAL_HEADS = "equal heads"
    FEWER_HEADS = "no more heads than the teacher"
    NARROWER = "a student no wider than the teacher"
    EQUAL_TOKENS = "equal tokens"
    LOGITS = "logits of the same classes"
    CLASSES = "data with classes"


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer in one forward: the part of it that a loss reads."""

    name: str
    attention: Capture | None = None
    hidden: Tensor | None = None
    """The output of the block, or of the attention module [b,n,e]."""
    mark: Mark = None
    """Of `hidden` as it was when the layer had run."""

    @classmethod
    def of(cls, name: str, hidden: Tensor) -> Self:
        """The layer of an output."""
        return cls(name, hidden=hidden, mark=marks_of(hidden)[0])

    def check_unchanged(self) -> None:
        """Refuse an output that the model has written to since.

        Raises:
            UserError: Naming the layer.
        """
        if written([self.mark], [self.hidden]):
            raise UserError(
                f"{self.name}: its output is changed in place after it has run (x += y), so that what losses read is "
                "no longer it; write x = x + y in the model, or leave this loss out"
            )


Layers = Mapping[str, Layer]
"""Layers by name, in the order in which they ran."""


@dataclass(frozen=True, eq=False)
class Forward(Output):
    """One model's forward: its output and, where a loss reads them, its layers."""

    attention: Layers = field(default_factory=dict)
    """Attention layers, if Reads.ATTENTION is read."""
    attention_output: Layers = field(default_factory=dict)
    """Attention modules, if Reads.ATTENTION_OUTPUT is read."""
    hidden: Layers = field(default_factory=dict)
    """Blocks, if Reads.HIDDEN is read."""

    def layers(self, kind: Reads) -> Layers:
        """The layers of one kind."""
        by_kind = {
            Reads.ATTENTION: self.attention,
            Reads.ATTENTION_OUTPUT: self.attention_output,
            Reads.HIDDEN: self.hidden,
        }
        return by_kind[kind]


@dataclass(frozen=True, eq=False)
class Term:
    """What a loss returns: a value per sample [b] (its weight not applied) and numbers to log."""

    value: Tensor
    logs: dict[str, Tensor] = field(default_factory=dict)
