"""Losses that are a sum over pairs of layers."""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from dit_shd.core.errors import UserError
from dit_shd.distillation.layer_map import LayerMap
from dit_shd.distillation.loss import Loss
from dit_shd.distillation.records import LAYERS, Forward, Layer, Layers, Reads, Term
from dit_shd.distillation.schedule import Weight
from dit_shd.tasks import Batch


class LayerLoss(Loss):
    """A sum over pairs of layers. A pair is computed as soon as the teacher's layer has run, so that none need be held.

    What its backward computes anew is kept until then: of TinyBERT and HeadMean query and key of the teacher's layers.

    Args:
        weight: The factor in the total, constant or by step.
        passes: Names of the task's passes that it is a term of; None for all of them.
        layers: `sections`, `proportional`, `last`, or a map {student layer: teacher layer}.

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
            raise UserError(
                f"{type(self).__name__}: reads: wanted one of attention, attention output and hidden, found {kinds}"
            )
        if not isinstance(layers, (str, Mapping)):
            raise UserError(
                f"{type(self).__name__}: layers: wanted sections, proportional, last or {{student layer: teacher "
                f"layer}}, found {layers!r} (capture(model, layers=[...]) is where layers are chosen)"
            )
        if isinstance(layers, dict) and not layers:
            raise UserError(
                f"{type(self).__name__}: layers: the map is empty; wanted sections, proportional, last or "
                "{student layer: teacher layer}"
            )
        self.layers: LayerMap = layers
        self.projectors = nn.ModuleDict()
        """What `make_projector` made, by student layer (with _ for .)."""

    @property
    def kind(self) -> Reads:
        """The kind of layers that it reads."""
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

    def make_projector(self, student: Layer, teacher: Layer) -> nn.Module | None:
        """Make what the loss learns for one pair of layers, which `projector_of` then gives; None for nothing.

        Args:
            student: One layer, for its sizes.
            teacher: The layer that it learns from.

        Raises:
            UserError: The sizes do not fit the loss.
        """
        return None

    def projector_of(self, student: Layer) -> Any:  # noqa: ANN401
        """The module that `make_projector` made for a layer of the student.

        Raises:
            UserError: None was made.
        """
        key = student.name.replace(".", "_")
        if key not in self.projectors:
            raise UserError(
                f"{type(self).__name__}: has no projector for {student.name} yet; before the optimizer is made, call "
                "distiller.build([batch], teacher)"
            )
        return self.projectors[key]

    def build(self, student: Forward, teacher: Forward, batch: Batch) -> None:
        """Make the projectors of all pairs of layers."""
        layers, sources = student.layers(self.kind), teacher.layers(self.kind)
        for name, source in self.layer_map(layers, sources).items():
            key = name.replace(".", "_")
            made = None if key in self.projectors else self.make_projector(layers[name], sources[source])
            if made is not None:
                self.projectors[key] = made

    def term(self, student: Forward, teacher: Forward, batch: Batch) -> Term:
        raise TypeError(f"{type(self).__name__}: is a sum over layers; see begin")

    def begin(self, teacher: Sequence[str], student: Layers, batch: Batch | None) -> "Pairs":
        """Begin the loss of one pass, which is then called with each of the teacher's layers as it runs.

        Args:
            teacher: The names of its layers, in the order in which they run.
            student: Its layers, which have all run.
            batch: Of training; None in a script that calls the loss by itself.

        Raises:
            UserError: No layer is paired.
        """
        pairs = self.layer_map(student, teacher)
        if not pairs:
            raise UserError(f"{type(self).__name__}: layers: none of the student is paired with one of the teacher")
        return Pairs(self, pairs, student, batch)


class Pairs:
    """The loss of one pass, pair by pair as the teacher's layers run.

    Args:
        loss: Whose pairs these are.
        pairs: Student layer -> teacher layer.
        student: Its layers.
        batch: The batch of training, if there is one.
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
                    term = self._loss.pair(self._student[layer], teacher, self._batch)
                    self._terms[layer] = _of_share(term, self._student[layer])

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


def _of_share(term: Term, layer: Layer) -> Term:
    """The loss of a layer, or of the part of one that a capture is."""
    share = 1.0 if layer.attention is None else layer.attention.share
    return term if share == 1 else replace(term, value=term.value * share)
