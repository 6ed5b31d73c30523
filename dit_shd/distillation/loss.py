"""A distillation loss: what it reads, what it learns, what it gives."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from dit_shd.attention.capture import Captures
from dit_shd.core.errors import UserError
from dit_shd.diffusion.guidance import Guidance
from dit_shd.distillation.frozen import Frozen
from dit_shd.distillation.layer_map import LayerMap, layer_map
from dit_shd.distillation.records import LAYERS, Forward, Needs, Reads, Term
from dit_shd.distillation.schedule import Weight, at_step, ended, schedule
from dit_shd.squeezing.cost import LayerCost
from dit_shd.tasks import Batch


class Loss(nn.Module, ABC):
    """A distillation term.

    The keywords of a loss's `__init__` are its keys in YAML. Every loss has one more, `teacher`: the name of the
    teacher that it reads, where a run has several; a list of names stands for the mean of these teachers' outputs.

    A loss whose `reads` include ATTENTION or HIDDEN is given all layers of both models at once. The teacher's are held
    until it has run to its end: attention takes 3 b h n d numbers a layer (query, key and value; the maps themselves
    are not stored), hidden states take b n e. A sum over pairs of layers need hold none: see LayerLoss.

    Args:
        weight: The factor in the total, constant or by step.
        passes: Names of the task's passes that it is a term of; None for all of them.

    Raises:
        UserError: A negative weight, or no pass.
    """

    reads: ClassVar[frozenset[Reads]] = frozenset({Reads.OUTPUT})
    """Parts of the student's forward, and of the teacher's if it needs one."""
    learns: ClassVar[bool] = False
    """Whether `build` makes parameters of it."""
    needs: ClassVar[frozenset[Needs]] = frozenset()
    """What both models must have in common."""
    paper: ClassVar[str] = ""
    """Where it was published."""
    needs_teacher: ClassVar[bool] = True
    """If not, `term` gets None in its place, and no teacher is run for it."""
    fields: ClassVar[frozenset[str]] = frozenset()
    """Fields of the dataset that it reads beside what the task draws, as `batch.data[name]`."""
    calibration: int = 0
    """Batches that it is calibrated on before training; see calibrate."""
    teacher: str | Sequence[str] | None = None
    """The name of the teacher that it reads: None for the first, several for the mean of their outputs."""
    guidance: Guidance | None = None
    """Of the teacher's output that it is given; None for the plain one. The teacher then runs a second time."""
    layers: LayerMap = "sections"
    """Rule or map by which each layer of the student gets a layer of the teacher."""

    def __init__(self, weight: Weight = 1.0, passes: Sequence[str] | None = ("plain",)):
        super().__init__()
        if passes is not None and not passes:
            raise UserError(f"{type(self).__name__}: passes: wanted the name of one or more, found none")
        self.weight, self.passes = schedule(weight, type(self).__name__), None if passes is None else tuple(passes)

    @classmethod
    def from_options(cls, teacher: str | list[str] | None = None, **options: Any) -> Self:
        """Build a loss from its keys in YAML.

        Args:
            teacher: The name of the teacher that it reads; None for the first. Several, for losses on
                outputs alone: the mean of these.
            options: The keywords of `__init__`.

        Raises:
            UserError: Several teachers for a loss that reads layers, whose mean has no meaning.
        """
        loss = cls(**options)
        if isinstance(teacher, list) and (not teacher or loss.reads != {Reads.OUTPUT}):
            wanted = "one or more names" if not teacher else "one name, since it reads layers"
            raise UserError(f"{cls.__name__}: teacher: wanted {wanted}, found {teacher}")
        loss.teacher = teacher
        return loss

    @property
    def reads_teacher(self) -> bool:
        """Whether a teacher has to run for it."""
        return self.needs_teacher and bool(self.reads)

    def takes_part(self, pass_name: str) -> bool:
        """Whether it is a term of a pass."""
        return self.passes is None or pass_name in self.passes

    def weight_at(self, step: int) -> float:
        """The factor at a step, counted from 0."""
        return at_step(self.weight, step)

    def ended(self, step: int) -> bool:
        """Whether its schedule has come to 0 for good, and it need not be computed any more."""
        return ended(self.weight, step)

    def heaviest(self, steps: int) -> float:
        """The largest factor in a run of so many steps: a piecewise linear function has it at a node or an end."""
        return max(self.weight_at(step) for step in (0, steps - 1, *self.weight) if step < steps)

    @abstractmethod
    def term(self, student: Forward, teacher: Forward, batch: Batch) -> Term:
        """The loss of one pass.

        Args:
            student: Output, and layers if they are read.
            teacher: Likewise, without a graph; None for a loss that needs no teacher.
            batch: The input of both models.

        Returns:
            A value for each sample [b], not weighted.
        """

    def layer_map(self, student: Iterable[str], teacher: Iterable[str]) -> dict[str, str]:
        """Student layer -> teacher layer of one pass.

        Args:
            student: Names of its layers, in order: `student.attention` or `student.hidden` of `term`.
            teacher: Names of its layers.

        Raises:
            UserError: `layers` names layers that do not exist, or a section is missing in the teacher.
        """
        return layer_map(list(teacher), list(student), self.layers)

    def build(self, student: Forward, teacher: Forward, batch: Batch) -> None:
        """Make the parameters that depend on the models' sizes, such as projectors, unless they exist.

        Called once for each pass before training (Distiller.build), with a forward of both models without gradients.

        Args:
            student: What it reads of the student.
            teacher: Likewise; None for a loss that needs no teacher.
            batch: The batch of both forwards.

        Raises:
            UserError: The models' sizes do not fit it.
        """

    def cost(self, teacher: Captures, student: Captures, images: int) -> LayerCost | None:
        """Operations and bytes of one pass, apart from both models; None: count them by running it on shapes.

        Args:
            teacher: Captures of one image, perhaps on the meta device; empty for a loss that reads no layers.
            student: The same of the student.
            images: The number of images in the pass.
        """
        return None if self.reads & LAYERS else LayerCost()

    def calibrate(self, teacher: Captures, student: Captures, batch: Batch | None = None) -> None:
        """Take in one of `calibration` batches, without gradients.

        Args:
            teacher: Captures of the batch.
            student: Captures of the same batch.
            batch: Itself, for the weights of its query rows; None: 1 each.
        """

    def calibrated(self) -> dict[str, Any]:
        """The result of calibration, as plain data to be saved with the run and read back by restore."""
        return {}

    def restore(self, calibration: dict[str, Any]) -> None:
        """Restore the result of `calibrated` of an earlier session of the run.

        Args:
            calibration: Plain data.

        Raises:
            UserError: It is of another loss.
        """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move the frozen models with the loss: `.to()`, `.cuda()` and the like all end here."""
        for value in vars(self).values():
            if isinstance(value, Frozen):
                value.model._apply(fn, recurse)
        return super()._apply(fn, recurse)
