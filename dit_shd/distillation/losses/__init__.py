"""Distillation terms, one file each. A loss sees what both models did in one pass; never a dataset or a device."""

import enum
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from dit_shd.attention.capture import Capture, Captures
from dit_shd.core.errors import UserError
from dit_shd.core.plugins import PluginFolder
from dit_shd.distillation.layer_map import LayerMap, layer_map
from dit_shd.squeezing.cost import LayerCost
from dit_shd.tasks import Batch, Output


class Reads(enum.Enum):
    """What a loss looks at."""

    OUTPUT = "output"
    """What both models predict. Where no loss reads it, the teacher stops after the last layer needed."""
    ATTENTION = "attention"
    """Captures of attention layers."""
    HIDDEN = "hidden"
    """Outputs of blocks [b,n,e]."""


LAYERS = frozenset({Reads.ATTENTION, Reads.HIDDEN})
"""What there is of layers; each has names and an order of its own."""


@dataclass(frozen=True, eq=False)
class Layer:
    """What a loss sees of one layer: whichever of it the loss reads."""

    name: str
    attention: Capture | None = None
    hidden: Tensor | None = None
    """The block's output [b,n,e]."""


@dataclass(frozen=True, eq=False)
class Term:
    """What a loss returns: a value per sample [b] (its weight not applied) and numbers to log."""

    value: Tensor
    logs: dict[str, Tensor] = field(default_factory=dict)


Weight = float | dict[int, float]
"""A factor, or {step: factor}: on a line between the steps named, and as at the first and last of them outside."""


class Loss(nn.Module, ABC):
    """A distillation term.

    Args:
        weight: its factor in the total, the same throughout or by step.
        passes: the passes it takes part in.
    """

    reads: ClassVar[frozenset[Reads]] = frozenset({Reads.OUTPUT})
    calibration = 0
    """How many batches it wants to see before training; see calibrate."""

    def __init__(self, weight: Weight = 1.0, passes: Sequence[str] = ("plain",)):
        super().__init__()
        if self.reads & LAYERS and not isinstance(self, LayerLoss):
            raise UserError(f"{type(self).__name__}: reads layers, so it wants to be a LayerLoss, which gets them")
        if not passes:
            raise UserError(f"{type(self).__name__}: passes: wanted the name of one or more, found none")
        self.weight, self.passes = _schedule(weight, type(self).__name__), tuple(passes)

    def weight_at(self, step: int) -> float:
        """The factor of the step with this number, counted from 0."""
        return float(np.interp(step, list(self.weight), list(self.weight.values())))

    def heaviest(self, steps: int) -> float:
        """The largest factor of a run's steps: on lines between steps that are named, one of those or of the ends."""
        return max(self.weight_at(step) for step in (0, steps - 1, *self.weight) if step < steps)

    @abstractmethod
    def term(self, student: Output, teacher: Output, batch: Batch) -> Term:
        """The loss of one pass; the teacher's output has no graph."""

    def cost(self, teacher: Captures, student: Captures, images: int) -> LayerCost:
        """What one pass over some images takes, by count; the captures are one image's and may be without numbers."""
        return LayerCost()

    def calibrate(self, teacher: Captures, student: Captures) -> None:
        """Look at one of `calibration` batches, without gradients."""

    def calibrated(self) -> dict[str, Any]:
        """What was found, as plain data to be saved with the run (and read back by restore)."""
        return {}

    def restore(self, found: dict[str, Any]) -> None:
        """Take up what calibrated() gave in an earlier session of the run."""


class LayerLoss(Loss):
    """A sum over pairs of layers. A pair is settled as soon as the teacher's layer has run, so that none is held.

    Args:
        layers: sections, proportional, or a map {student layer: teacher layer}.
    """

    reads = frozenset({Reads.ATTENTION})

    def __init__(
        self,
        weight: Weight = 1.0,
        passes: Sequence[str] = ("plain",),
        layers: str | dict[str, str] = "sections",
    ):
        super().__init__(weight, passes)
        if len(self.reads & LAYERS) != 1:
            found = ", ".join(sorted(kind.value for kind in self.reads)) or "nothing"
            raise UserError(f"{type(self).__name__}: reads: wanted attention or hidden, one of the two, found {found}")
        if isinstance(layers, dict) and not layers:
            raise UserError(
                f"{type(self).__name__}: layers: the map is empty; wanted sections, proportional or "
                "{student layer: teacher layer}"
            )
        self.layers: LayerMap = layers  # type: ignore[assignment]

    @abstractmethod
    def pair(self, student: Layer, teacher: Layer, batch: Batch | None) -> Term:
        """The loss of one pair of layers, with a gradient to the student's side only.

        Args:
            batch: of training; None in a script that calls the loss by itself.
        """

    def term(self, student: Output, teacher: Output, batch: Batch) -> Term:
        raise TypeError(f"{type(self).__name__}: is a sum over layers; see begin")

    def begin(self, teacher: Sequence[str], student: Mapping[str, Layer], batch: Batch | None) -> "Pairs":
        """The loss of one pass, to be handed the teacher's layers as they run.

        Args:
            teacher: the names of its layers, in the order in which they run.
        """
        return Pairs(self, layer_map(teacher, list(student), self.layers), student, batch)


class Pairs:
    """The loss of one pass, layer by layer as the teacher's come in."""

    def __init__(self, loss: LayerLoss, pairs: Mapping[str, str], student: Mapping[str, Layer], batch: Batch | None):
        self._loss, self._pairs, self._student, self._batch = loss, pairs, student, batch
        self._terms: dict[str, Term] = {}
        self._gradients = torch.is_grad_enabled()

    def __call__(self, teacher: Layer) -> None:
        """One of the teacher's layers has run."""
        for ours, theirs in self._pairs.items():
            if theirs == teacher.name:
                with torch.set_grad_enabled(self._gradients):  # the teacher runs without
                    self._terms[ours] = self._loss.pair(self._student[ours], teacher, self._batch)

    @property
    def waits(self) -> bool:
        """Whether there are layers to come that it wants."""
        return len(self._terms) < len(self._pairs)

    def term(self) -> Term:
        """The loss, once the teacher is through; numbers without a / in their names are means over the layers."""
        missing = [theirs for ours, theirs in self._pairs.items() if ours not in self._terms]
        if missing:
            name = type(self._loss).__name__
            raise UserError(f"{name}: layer {missing[0]} of the teacher did not run in this pass, but did before")
        ordered = [self._terms[ours] for ours in self._pairs]
        logs = {k: v for term in ordered for k, v in term.logs.items() if "/" in k}
        for key in dict.fromkeys(k for term in ordered for k in term.logs if "/" not in k):
            logs[key] = torch.stack([term.logs[key] for term in ordered if key in term.logs]).mean()
        values = [term.value for term in ordered]
        b = math.gcd(*(len(value) for value in values))  # a video's layers see b x frames or b x places samples
        return Term(torch.stack([value.view(b, -1).mean(1) for value in values]).sum(0), logs)


def _schedule(weight: Weight, name: str) -> dict[int, float]:
    """{step: factor}, steps in order.

    Raises:
        UserError: a negative factor, or a step that is none.
    """
    points = weight if isinstance(weight, dict) else {0: weight}
    for step, factor in points.items():
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            raise UserError(f"{name}: weight: wanted whole steps from 0 as in {{0: 0.0, 1000: 2.0}}, found {step!r}")
        if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 <= factor < float("inf"):
            raise UserError(f"{name}: weight: wanted 0 or more, found {factor}")
    if not points:
        raise UserError(f"{name}: weight: wanted a number or {{step: number}}, found nothing")
    return dict(sorted(points.items()))


LOSSES = PluginFolder(__name__, Loss, "losses")
