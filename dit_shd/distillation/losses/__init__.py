"""Distillation losses, one file each: functions of both models' outputs, attention and hidden states in one pass."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from dit_shd.attention.capture import Captures
from dit_shd.core.errors import UserError
from dit_shd.core.plugins import PluginFolder
from dit_shd.distillation.layer_map import LayerMap, layer_map
from dit_shd.distillation.records import LAYERS, Forward, Layer, Layers, Reads, Term
from dit_shd.squeezing.cost import LayerCost
from dit_shd.tasks import Batch

__all__ = ["LAYERS", "LOSSES", "Forward", "Frozen", "Layer", "LayerLoss", "Loss", "Pairs", "Reads", "Term", "Weight"]

Weight = float | dict[int, float]
"""A factor, or {step: factor}: linear between the named steps, constant before the first and after the last."""


class Frozen:
    """A frozen model of a loss, such as an image encoder, run without gradients.

    It is no submodule of the loss, so it is never saved, averaged, sharded or synchronised; it moves with the loss.

    Args:
        model: Set to evaluation, its parameters frozen.
    """

    def __init__(self, model: nn.Module):
        self.model = model.eval().requires_grad_(False)

    @torch.no_grad()
    def __call__(self, *inputs: object, **options: object) -> Any:  # noqa: ANN401
        """Run the model.

        Args:
            inputs: Of its forward.
            options: Of its forward.

        Returns:
            What it gives, without a graph.
        """
        return self.model(*inputs, **options)


class Loss(nn.Module, ABC):
    """A distillation term.

    The keywords of a loss's `__init__` are its keys in YAML. Every loss has one more, `teacher`: the name of the
    teacher that it reads, where a run has several; a list of names stands for the mean of these teachers' outputs.

    A loss whose `reads` include ATTENTION or HIDDEN is given all layers of both models at once. The teacher's are held
    until it has run to its end: attention takes 3 b h n d numbers a layer (query, key and value; the maps themselves
    are not stored), hidden states take b n e. A loss that is a sum over pairs of layers holds none: see LayerLoss.

    Args:
        weight: The factor in the total, constant or by step.
        passes: Names of the task's passes that it is a term of; None for all of them.

    Raises:
        UserError: A negative weight, or no pass.
    """

    reads: ClassVar[frozenset[Reads]] = frozenset({Reads.OUTPUT})
    """Parts of the student's forward, and of the teacher's if it needs one."""
    needs_teacher: ClassVar[bool] = True
    """If not, `term` gets None in its place, and no teacher is run for it."""
    fields: ClassVar[frozenset[str]] = frozenset()
    """Fields of the dataset that it reads beside what the task draws, as `batch.data[name]`."""
    calibration: int = 0
    """Batches that it is calibrated on before training; see calibrate."""
    teacher: str | Sequence[str] | None = None
    """The name of the teacher that it reads: None for the first, several for the mean of their outputs."""
    layers: LayerMap = "sections"
    """Rule or map by which each layer of the student gets a layer of the teacher."""

    def __init__(self, weight: Weight = 1.0, passes: Sequence[str] | None = ("plain",)):
        super().__init__()
        if passes is not None and not passes:
            raise UserError(f"{type(self).__name__}: passes: wanted the name of one or more, found none")
        self.weight, self.passes = _schedule(weight, type(self).__name__), None if passes is None else tuple(passes)

    @classmethod
    def from_options(cls, teacher: str | list[str] | None = None, **options: Any) -> Self:
        """Build a loss from its keys in YAML.

        Args:
            teacher: The name of the teacher that it reads; None for the first. Several: the mean of their outputs.
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
        return float(np.interp(step, list(self.weight), list(self.weight.values())))

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

    def layer_map(self, student: Layers, teacher: Layers) -> dict[str, str]:
        """Student layer -> teacher layer of one pass.

        Args:
            student: `student.attention` or `student.hidden` of `term`.
            teacher: The same of the teacher.

        Raises:
            UserError: `layers` names layers that do not exist, or a section is missing in the teacher.
        """
        return layer_map(list(teacher), list(student), self.layers)

    def cost(self, teacher: Captures, student: Captures, images: int) -> LayerCost:
        """Operations and bytes of one pass, apart from both models.

        Args:
            teacher: Captures of one image, perhaps on the meta device; empty for a loss that reads no layers.
            student: The same of the student.
            images: In the pass.
        """
        return LayerCost()

    def calibrate(self, teacher: Captures, student: Captures) -> None:
        """Take in one of `calibration` batches, without gradients.

        Args:
            teacher: Captures of the batch.
            student: Captures of the same batch.
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


class LayerLoss(Loss):
    """A sum over pairs of layers. A pair is computed as soon as the teacher's layer has run, so that none is held.

    Args:
        weight: The factor in the total, constant or by step.
        passes: Names of the task's passes that it is a term of; None for all of them.
        layers: `sections`, `proportional`, or a map {student layer: teacher layer}.

    Raises:
        UserError: An empty map, or a class whose `reads` are not exactly one kind of layers.
    """

    reads = frozenset({Reads.ATTENTION})

    def __init__(
        self,
        weight: Weight = 1.0,
        passes: Sequence[str] | None = ("plain",),
        layers: str | dict[str, str] = "sections",
    ):
        super().__init__(weight, passes)
        if not self.needs_teacher:
            raise UserError(f"{type(self).__name__}: pairs layers with a teacher's; a loss without one is a Loss")
        if len(self.reads & LAYERS) != 1:
            kinds = ", ".join(sorted(kind.value for kind in self.reads)) or "nothing"
            raise UserError(f"{type(self).__name__}: reads: wanted attention or hidden, one of the two, found {kinds}")
        if isinstance(layers, dict) and not layers:
            raise UserError(
                f"{type(self).__name__}: layers: the map is empty; wanted sections, proportional or "
                "{student layer: teacher layer}"
            )
        self.layers: LayerMap = layers  # type: ignore[assignment]

    @property
    def kind(self) -> Reads:
        """The kind of layers that it reads: attention or hidden."""
        return next(iter(self.reads & LAYERS))

    @abstractmethod
    def pair(self, student: Layer, teacher: Layer, batch: Batch | None) -> Term:
        """The loss of one pair of layers, with a gradient to the student's side only.

        Args:
            student: One layer, with its graph.
            teacher: The layer that it learns from, without a graph.
            batch: Of training; None in a script that calls the loss by itself.

        Returns:
            A value for each sample [b]; logs without a / in their names are averaged over the pairs.
        """

    def term(self, student: Forward, teacher: Forward, batch: Batch) -> Term:
        raise TypeError(f"{type(self).__name__}: is a sum over layers; see begin")

    def begin(self, teacher: Sequence[str], student: Layers, batch: Batch | None) -> "Pairs":
        """Begin the loss of one pass, which is then called with each of the teacher's layers as it runs.

        Args:
            teacher: The names of its layers, in the order in which they run.
            student: Its layers, which have all run.
            batch: Of training; None in a script that calls the loss by itself.
        """
        return Pairs(self, layer_map(teacher, list(student), self.layers), student, batch)


class Pairs:
    """The loss of one pass, pair by pair as the teacher's layers run.

    Args:
        loss: Whose pairs these are.
        pairs: Student layer -> teacher layer.
        student: Its layers.
        batch: Of training, if there is one.
    """

    def __init__(self, loss: LayerLoss, pairs: Mapping[str, str], student: Layers, batch: Batch | None):
        self._loss, self._pairs, self._student, self._batch = loss, pairs, student, batch
        self._terms: dict[str, Term] = {}
        self._gradients = torch.is_grad_enabled()

    def __call__(self, teacher: Layer) -> None:
        """Add the pairs of a teacher's layer, which has run."""
        for layer, source in self._pairs.items():
            if source == teacher.name:
                with torch.set_grad_enabled(self._gradients):  # the teacher runs without
                    self._terms[layer] = self._loss.pair(self._student[layer], teacher, self._batch)

    @property
    def incomplete(self) -> bool:
        """Whether layers of the teacher that are paired have not run yet."""
        return len(self._terms) < len(self._pairs)

    def term(self) -> Term:
        """The loss, once all layers have run; logs without a / in their names are means over the pairs.

        Raises:
            UserError: A layer did not run, though it did in the first call of the pass.
        """
        missing = [source for layer, source in self._pairs.items() if layer not in self._terms]
        if missing:
            name = type(self._loss).__name__
            raise UserError(f"{name}: layer {missing[0]} of the teacher did not run in this pass, but did before")
        ordered = [self._terms[layer] for layer in self._pairs]
        logs = {k: v for term in ordered for k, v in term.logs.items() if "/" in k}
        for key in dict.fromkeys(k for term in ordered for k in term.logs if "/" not in k):
            logs[key] = torch.stack([term.logs[key] for term in ordered if key in term.logs]).mean()
        values = [term.value for term in ordered]
        b = math.gcd(*(len(value) for value in values))  # layers of a video have b x frames or b x places samples
        return Term(torch.stack([value.view(b, -1).mean(1) for value in values]).sum(0), logs)


def _schedule(weight: Weight, name: str) -> dict[int, float]:
    """{step: factor}, steps in order.

    Raises:
        UserError: A negative factor, or a key that is no step.
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
