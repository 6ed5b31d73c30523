"""Distillation terms, one file each. A loss sees what both models did in one pass; never a dataset or a device."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor, nn

from dit_shd.attention.capture import Capture, Captures
from dit_shd.core.errors import UserError
from dit_shd.core.plugins import PluginFolder
from dit_shd.diffusion.schedule import Schedule
from dit_shd.squeezing.cost import LayerCost
from dit_shd.tasks.diffusion import Batch, PassName


@dataclass(frozen=True, eq=False)
class View:
    """Teacher and student in one pass over the same batch."""

    batch: Batch
    schedule: Schedule
    student: Tensor
    """Output [b, c or 2c, y, x], with a graph."""
    teacher: Tensor
    """Output without a graph."""
    student_captures: Captures = field(default_factory=dict)
    teacher_captures: Captures = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Term:
    """What a loss returns: a value per sample [b] (its weight not applied) and numbers to log."""

    value: Tensor
    logs: dict[str, Tensor] = field(default_factory=dict)


class Listener(ABC):
    """Takes the teacher's Captures one by one while the teacher runs, so that none has to be held."""

    @abstractmethod
    def __call__(self, layer: str, capture: Capture) -> None:
        """One of the teacher's layers has run."""

    @property
    @abstractmethod
    def waits(self) -> bool:
        """Whether there are layers to come that it wants."""

    @abstractmethod
    def term(self) -> Term:
        """The loss, once the teacher is through."""


Weight = float | dict[int, float]
"""A factor, or {step: factor}: on a line between the steps named, and as at the first and last of them outside."""


class Loss(nn.Module, ABC):
    """A distillation term.

    Args:
        weight: its factor in the total, the same throughout or by step.
        passes: the passes it takes part in.
    """

    needs_captures = False
    needs_output = True
    """Whether it looks at the teacher's output; where no loss does, the teacher stops after the last layer needed."""
    calibration = 0
    """How many batches it wants to see before training; see calibrate."""

    def __init__(self, weight: Weight = 1.0, passes: Sequence[PassName] = ("plain",)):
        super().__init__()
        if not passes or any(p not in ("plain", "masked") for p in passes):
            raise UserError(f"{type(self).__name__}: passes: wanted plain, masked or both, found {list(passes)}")
        self.weight, self.passes = _schedule(weight, type(self).__name__), tuple(passes)

    def weight_at(self, step: int) -> float:
        """The factor of the step with this number, counted from 0."""
        return float(np.interp(step, list(self.weight), list(self.weight.values())))

    def heaviest(self, steps: int) -> float:
        """The largest factor of a run's steps: on lines between steps that are named, one of those or of the ends."""
        return max(self.weight_at(step) for step in (0, steps - 1, *self.weight) if step < steps)

    @abstractmethod
    def term(self, view: View) -> Term:
        """The loss of one pass."""

    def listener(self, layers: Sequence[str], student: Captures, batch: Batch | None = None) -> Listener | None:
        """A Listener for one pass, if the loss can work layer by layer; term() is then not called.

        Args:
            layers: the teacher's layers in the order in which they run. student: the student's captures.
        """
        return None

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
