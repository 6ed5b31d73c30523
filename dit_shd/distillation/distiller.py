"""The student and its losses as one module: what accelerate prepares, and what a training step calls."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import Tensor, nn

from dit_shd.attention.capture import Capture
from dit_shd.attention.recording.attach import capture
from dit_shd.attention.recording.sharded import KeptWeights
from dit_shd.core.dtensor import is_sharded
from dit_shd.distillation.losses import LAYERS, Layer, LayerLoss, Loss, Pairs, Reads, Term
from dit_shd.models.blocks import recorded_blocks
from dit_shd.tasks import Batch, Output, Task, Terms


class Distiller(nn.Module):
    """The student, and the losses with whatever projectors they hold.

    The teacher is a guest: it comes in with each call and is never a part of this module, so it is never
    synchronised, saved or averaged.

    Args:
        stop_teacher_early: let the teacher stop after the last layer that losses read, if none reads its output. Not
            for a teacher that is compiled or sharded: both need a forward that ends.
    """

    def __init__(
        self, task: Task[Any], student: nn.Module, losses: Sequence[Loss] = (), stop_teacher_early: bool = True
    ):
        super().__init__()
        self.task, self.student, self.losses = task, student, nn.ModuleList(losses)
        self.stop_teacher_early = stop_teacher_early
        self._orders: dict[tuple[str, Reads], list[str]] = {}
        """The teacher's layers in the order in which they ran; known after the first call of a pass."""
        self._kept = KeptWeights()

    def forward(self, batch: Batch, teacher: nn.Module | None = None) -> tuple[Tensor, Terms]:
        """The loss of one pass, averaged over the batch, and its terms (detached, not weighted) by name."""
        terms, logs = self.terms(batch, teacher)
        total = sum(terms.values(), torch.zeros((), device=batch.indices.device))
        idle = [p for name, loss in self.named_losses() if name not in terms for p in loss.parameters()]
        for parameter in idle:  # DDP waits for every parameter in every pass, also for projectors of other passes
            total = total + 0.0 * parameter.sum()
        return total, logs

    def terms(self, batch: Batch, teacher: nn.Module | None) -> tuple[Terms, Terms]:
        """The weighted terms of one pass, averaged over the batch, with their graph; and what is to be logged."""
        wanted = {name: loss for name, loss in self.named_losses() if batch.pass_name in loss.passes}
        read = frozenset().union(*(loss.reads for loss in wanted.values()))
        hidden: dict[str, Tensor] = {}
        with ExitStack() as stack:
            captures = stack.enter_context(capture(self.student)) if Reads.ATTENTION in read else {}
            if Reads.HIDDEN in read:
                stack.enter_context(recorded_blocks(self.student, hidden.__setitem__))
            output = self.task.predict(self.student, batch)
            layers = {
                Reads.ATTENTION: {name: Layer(name, attention=found) for name, found in captures.items()},
                Reads.HIDDEN: {name: Layer(name, hidden=found) for name, found in hidden.items()},
            }
        terms = {name: value.mean() for name, value in self.task.losses(output, batch).items()}
        logs = {name: term.detach() for name, term in terms.items()}
        if wanted:
            assert teacher is not None, "losses need a teacher"
            for name, term in self._teach(batch, teacher, wanted, output, layers).items():
                mean = term.value.mean()
                terms[name] = wanted[name].weight_at(batch.step) * mean
                logs[name] = mean.detach()
                logs |= {f"{name}/{key}": value for key, value in term.logs.items()}
        return terms, logs

    def _teach(
        self,
        batch: Batch,
        teacher: nn.Module,
        losses: Mapping[str, Loss],
        output: Output,
        layers: Mapping[Reads, Mapping[str, Layer]],
    ) -> dict[str, Term]:
        """Run the teacher; its layers go to the losses one by one, so that none is held.

        The first time the order of its layers is not known yet, and all of them are held.
        """
        gradients = torch.is_grad_enabled()
        started: dict[str, Pairs] = {}
        held: dict[Reads, dict[str, Layer]] = {}
        for name, loss in losses.items():
            if isinstance(loss, LayerLoss):
                kind = _kind(loss)
                order = self._orders.get((batch.pass_name, kind))
                if order:
                    started[name] = loss.begin(order, layers[kind], batch)
                else:
                    held[kind] = {}
        read = frozenset().union(*(loss.reads for loss in losses.values()))
        stop = self.stop_teacher_early and len(started) == len(losses) and Reads.OUTPUT not in read

        def deliver(kind: Reads, layer: Layer) -> None:
            for name, pairs in started.items():
                if _kind(losses[name]) is kind:
                    pairs(layer)
            if kind in held:
                held[kind][layer.name] = layer
            if stop and not any(pairs.waits for pairs in started.values()):
                raise _TeacherDone

        answer = None
        with ExitStack() as stack, torch.no_grad(), suppress(_TeacherDone):
            _record(stack, teacher, read, deliver, self._kept if is_sharded(teacher) else None)
            answer = self.task.predict(teacher, batch)
        for kind, found in held.items():
            self._orders[batch.pass_name, kind] = list(found)
        terms: dict[str, Term] = {}
        for name, loss in losses.items():
            if name in started:
                terms[name] = started[name].term()
            elif isinstance(loss, LayerLoss):
                with torch.set_grad_enabled(gradients):
                    terms[name] = _of_held(loss, held[_kind(loss)], layers[_kind(loss)], batch)
            else:
                assert answer is not None
                terms[name] = loss.term(output, answer, batch)
        return terms

    def named_losses(self) -> list[tuple[str, Loss]]:
        """The losses by the name of their file; a second one of a kind gets a number."""
        names: list[tuple[str, Loss]] = []
        for loss in self.losses:
            base = type(loss).__module__.rpartition(".")[2]
            count = sum(name.split("#")[0] == base for name, _ in names)
            names.append((f"{base}#{count + 1}" if count else base, loss))  # type: ignore[arg-type]
        return names


class _TeacherDone(Exception):
    """The teacher has run as far as it is needed."""


def _kind(loss: Loss) -> Reads:
    """What of layers a loss reads."""
    return next(iter(loss.reads & LAYERS))


def _of_held(loss: LayerLoss, held: Mapping[str, Layer], student: Mapping[str, Layer], batch: Batch) -> Term:
    """A loss whose teacher's layers are all there."""
    pairs = loss.begin(list(held), student, batch)
    for layer in held.values():
        pairs(layer)
    return pairs.term()


def _record(
    stack: ExitStack, model: nn.Module, read: frozenset[Reads], sink: Any, kept: KeptWeights | None = None
) -> None:
    """Hand the layers that a model's next forward runs to `sink(kind, layer)`, as far as they are read.

    Args:
        kept: of a model whose gathered weights do not outlive its blocks.
    """

    def attention(name: str, found: Capture) -> None:
        sink(Reads.ATTENTION, Layer(name, attention=kept.of(name, found) if kept is not None else found))

    def hidden(name: str, found: Tensor) -> None:
        sink(Reads.HIDDEN, Layer(name, hidden=found))

    if Reads.ATTENTION in read:
        stack.enter_context(capture(model, sink=attention))
    if Reads.HIDDEN in read:
        stack.enter_context(recorded_blocks(model, hidden))
