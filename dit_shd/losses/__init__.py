"""Distillation terms, one file each. A loss sees what both models did in one pass; never a dataset or a device."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from dit_shd.attention import Capture, Captures
from dit_shd.batch import Batch, PassName
from dit_shd.diffusion import Schedule
from dit_shd.errors import UserError


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


@dataclass(frozen=True)
class LossCost:
    """What a loss takes beside both models' own forwards and backwards."""

    operations: float = 0.0
    """A multiply-add counts as two."""
    held: int = 0
    """Bytes kept for the backward."""
    scratch: int = 0
    """Bytes in use at any one time."""

    def __add__(self, other: "LossCost") -> "LossCost":
        return LossCost(self.operations + other.operations, self.held + other.held, max(self.scratch, other.scratch))


class Listener(ABC):
    """Takes the teacher's Captures one by one while the teacher runs, so that none has to be held."""

    @abstractmethod
    def __call__(self, layer: str, capture: Capture) -> None:
        """One of the teacher's layers has run."""

    @abstractmethod
    def term(self) -> Term:
        """The loss, once the teacher is through."""


class Loss(nn.Module, ABC):
    """A distillation term.

    Args:
        weight: its factor in the total.
        passes: the passes it takes part in.
    """

    needs_captures = False
    calibration = 0
    """How many batches it wants to see before training; see calibrate."""

    def __init__(self, weight: float = 1.0, passes: Sequence[PassName] = ("plain",)):
        super().__init__()
        if not passes or any(p not in ("plain", "masked") for p in passes):
            raise UserError(f"{type(self).__name__}: passes: wanted plain, masked or both, found {list(passes)}")
        if not weight >= 0:
            raise UserError(f"{type(self).__name__}: weight: wanted 0 or more, found {weight}")
        self.weight, self.passes = weight, tuple(passes)

    @abstractmethod
    def term(self, view: View) -> Term:
        """The loss of one pass."""

    def listener(self, layers: Sequence[str], student: Captures, batch: Batch | None = None) -> Listener | None:
        """A Listener for one pass, if the loss can work layer by layer; term() is then not called.

        Args:
            layers: the teacher's layers in the order in which they run. student: the student's captures.
        """
        return None

    def cost(self, teacher: Captures, student: Captures, images: int) -> LossCost:
        """What one pass over some images takes, by count; the captures are one image's and may be without numbers."""
        return LossCost()

    def calibrate(self, teacher: Captures, student: Captures) -> None:
        """Look at one of `calibration` batches, without gradients."""

    def calibrated(self) -> dict[str, Any]:
        """What was found, as plain data to be saved with the run (and read back by restore)."""
        return {}

    def restore(self, found: dict[str, Any]) -> None:
        """Take up what calibrated() gave in an earlier session of the run."""
