"""A teacher's forward whose layers go to the losses one by one."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import Tensor, nn

from dit_shd.attention.capture import Capture
from dit_shd.attention.recording.attach import capture
from dit_shd.attention.recording.sharded import KeptWeights
from dit_shd.core.dtensor import is_sharded
from dit_shd.distillation.losses import LayerLoss, Loss, Pairs
from dit_shd.distillation.records import LAYERS, Forward, Layer, Reads, Term
from dit_shd.models.blocks import recorded_blocks
from dit_shd.tasks import Batch, Output, Task

Sink = Callable[[Reads, Layer], None]


class TeacherStream:
    """What is known of one teacher from pass to pass: the order of its layers.

    With it the layers go to every LayerLoss as they run, and none is held. In the first call of a pass the order is
    not known and all of them are held, as they are in every call for a loss that reads all layers at once.

    Args:
        stop_early: let the teacher stop after the last layer that losses read, if none reads its output.
    """

    def __init__(self, stop_early: bool = True):
        self.stop_early = stop_early
        self._orders: dict[tuple[str, Reads], list[str]] = {}
        self._weights = KeptWeights()

    def terms(
        self, task: Task[Any], teacher: nn.Module, batch: Batch, losses: Mapping[str, Loss], student: Forward
    ) -> dict[str, Term]:
        """Run the teacher once; the term of every loss that reads it, by name."""
        streamed = self._begin(batch, losses, student)
        read = frozenset[Reads]().union(*(loss.reads for loss in losses.values()))
        held: dict[Reads, dict[str, Layer]] = {
            kind: {} for name, loss in losses.items() if name not in streamed for kind in loss.reads & LAYERS
        }
        stop = self.stop_early and len(streamed) == len(losses) and Reads.OUTPUT not in read

        def deliver(kind: Reads, layer: Layer) -> None:
            for name, pairs in streamed.items():
                if kind in losses[name].reads:
                    pairs(layer)
            if kind in held:
                held[kind][layer.name] = layer
            if stop and not any(pairs.incomplete for pairs in streamed.values()):
                raise _TeacherDoneError

        output = None
        with ExitStack() as stack, torch.no_grad(), suppress(_TeacherDoneError):
            _record(stack, teacher, read, deliver, self._weights if is_sharded(teacher) else None)
            output = task.predict(teacher, batch)
        for kind, layers in held.items():
            self._orders[batch.pass_name, kind] = list(layers)
        return {
            name: streamed[name].term() if name in streamed else _term(loss, student, _forward(output, held), batch)
            for name, loss in losses.items()
        }

    def _begin(self, batch: Batch, losses: Mapping[str, Loss], student: Forward) -> dict[str, Pairs]:
        """The losses whose teacher's layers run in an order that is known."""
        begun: dict[str, Pairs] = {}
        for name, loss in losses.items():
            order = self._orders.get((batch.pass_name, loss.kind)) if isinstance(loss, LayerLoss) else None
            if order and isinstance(loss, LayerLoss):
                begun[name] = loss.begin(order, student.layers(loss.kind), batch)
        return begun


class _TeacherDoneError(Exception):
    """The teacher has run as far as it is needed."""


def _forward(output: Output | None, held: Mapping[Reads, Mapping[str, Layer]]) -> Forward:
    assert output is not None, "a loss that is not streamed lets the teacher run to its end"
    attention, hidden = held.get(Reads.ATTENTION, {}), held.get(Reads.HIDDEN, {})
    return Forward(output.prediction, output.extra, attention, hidden)


def _term(loss: Loss, student: Forward, teacher: Forward, batch: Batch) -> Term:
    """The term of a loss once everything of the teacher is there."""
    if not isinstance(loss, LayerLoss):
        return loss.term(student, teacher, batch)
    layers = teacher.layers(loss.kind)
    pairs = loss.begin(list(layers), student.layers(loss.kind), batch)
    for layer in layers.values():
        pairs(layer)
    return pairs.term()


def _record(
    stack: ExitStack, model: nn.Module, read: frozenset[Reads], sink: Sink, weights: KeptWeights | None
) -> None:
    """Deliver the layers that a model's next forward runs to `sink(kind, layer)`, as far as they are read.

    Args:
        weights: of a model whose gathered weights do not outlive its blocks.
    """

    def attention(name: str, capture: Capture) -> None:
        sink(Reads.ATTENTION, Layer(name, attention=capture if weights is None else weights.of(name, capture)))

    def hidden(name: str, output: Tensor) -> None:
        sink(Reads.HIDDEN, Layer(name, hidden=output))

    if Reads.ATTENTION in read:
        stack.enter_context(capture(model, sink=attention))
    if Reads.HIDDEN in read:
        stack.enter_context(recorded_blocks(model, hidden))
