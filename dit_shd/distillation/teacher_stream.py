"""A teacher's forward whose layers go to the losses one by one."""

from collections.abc import Iterator, Mapping, Set
from contextlib import ExitStack, suppress
from copy import copy
from functools import partial
from typing import Any
from weakref import ref

import torch
from torch import nn

from dit_shd.attention.recording import discovery
from dit_shd.attention.recording.sharded import KeptWeights
from dit_shd.core.dtensor import is_sharded
from dit_shd.core.errors import UserError
from dit_shd.core.rng import kept_generators
from dit_shd.distillation.guided import guided_outputs
from dit_shd.distillation.losses import LayerLoss, Loss, Pairs
from dit_shd.distillation.recording import check_all_ran, check_named, check_unchanged, named_attention, record
from dit_shd.distillation.records import LAYERS, Forward, Layer, Reads, Term
from dit_shd.models.batch_norms import kept_statistics
from dit_shd.models.blocks import blocks
from dit_shd.models.compilation import is_compiled
from dit_shd.models.offload import is_offloaded
from dit_shd.tasks import Batch, Output, Task

OF_ATTENTION = frozenset({Reads.ATTENTION, Reads.ATTENTION_OUTPUT})


class TeacherStream:
    """Runs one teacher, pass by pass, and remembers the order of its layers.

    With the order the layers go to every LayerLoss as they run, and none is held; before the first call of a pass
    another forward of the batch shows it. All are held for a loss that reads all layers at once.

    Args:
        stop_early: Let the teacher stop after the last layer that losses read, if none reads its output.
    """

    def __init__(self, stop_early: bool = True):
        self.stop_early = stop_early
        self._orders: dict[tuple[str, Reads], list[str]] = {}
        self._weights = KeptWeights()
        self._of: ref[nn.Module] | None = None
        """Whose order and weights these are."""

    def terms(
        self, task: Task[Any], teacher: nn.Module, batch: Batch, losses: Mapping[str, Loss], student: Forward
    ) -> dict[str, Term]:
        """Run the teacher once.

        Args:
            task: What is learned.
            teacher: On the batch's device.
            batch: One pass.
            losses: All that read this teacher, by name.
            student: Its output and layers on the same batch.

        Returns:
            The term of every loss, by name.
        """
        if self._of is None or self._of() is not teacher:
            self._orders, self._weights, self._of = {}, KeptWeights(), ref(teacher)
        read = frozenset[Reads]().union(*(loss.reads for loss in losses.values()))
        self._look(task, teacher, batch, losses)
        streamed = self._begin(batch, losses, student)
        held: dict[Reads, dict[str, Layer]] = {
            kind: {} for name, loss in losses.items() if name not in streamed for kind in loss.reads & LAYERS
        }
        stop = self.stop_early and len(streamed) == len(losses) and Reads.OUTPUT not in read

        def deliver(kind: Reads, layer: Layer) -> None:
            if streamed and torch.is_inference_mode_enabled():
                raise UserError(
                    f"{type(discovery.unwrapped(teacher)).__name__}: the teacher's forward runs in "
                    "torch.inference_mode, in which losses on its layers train nothing; wanted torch.no_grad there, or "
                    "neither"
                )
            for name, pairs in streamed.items():
                if kind in losses[name].reads:
                    pairs(layer)
            if kind in held:
                held[kind][layer.name] = layer
            if stop and not any(pairs.incomplete for pairs in streamed.values()):
                raise _TeacherDoneError

        output = None
        with ExitStack() as stack, torch.no_grad(), suppress(_TeacherDoneError):
            weights = self._weights if is_sharded(teacher) or is_offloaded(teacher) else None
            named = named_attention(losses.values(), "teacher", teacher)
            record(stack, task, teacher, batch, read, deliver, weights, named)
            output = task.predict(teacher, batch)
        check_unchanged(held)
        if Reads.ATTENTION in held:
            check_named(losses.values(), "teacher", teacher, held[Reads.ATTENTION])
        outputs = {} if output is None else guided_outputs(task, teacher, batch, losses, output)
        return {
            name: streamed[name].term()
            if name in streamed
            else loss.term(student, _forward(outputs.get(name, output), held), batch)
            for name, loss in losses.items()
        }

    def _look(self, task: Task[Any], teacher: nn.Module, batch: Batch, losses: Mapping[str, Loss]) -> None:
        """See the order of the layers that losses of pairs read."""
        unknown = {
            loss.kind
            for loss in losses.values()
            if isinstance(loss, LayerLoss) and (batch.pass_name, loss.kind) not in self._orders
        }
        if not unknown:
            return
        names: dict[Reads, list[str]] = {}
        for asked, like in [*_first_seen(task, teacher, batch, unknown), (task, batch)]:
            names = {kind: [] for kind in unknown}
            with ExitStack() as stack, torch.no_grad(), kept_generators(batch.indices.device):
                stack.enter_context(kept_statistics(teacher))
                named = named_attention(losses.values(), "teacher", teacher)
                note = partial(_note, names)
                captures = record(stack, asked, teacher, like, frozenset(unknown), note, None, named)
                asked.predict(teacher, like)
                if named is None:
                    check_all_ran(teacher, captures, "teacher")
        self._orders |= {(batch.pass_name, kind): layers for kind, layers in names.items()}
        if Reads.ATTENTION in names:
            check_named(losses.values(), "teacher", teacher, names[Reads.ATTENTION])

    def _begin(self, batch: Batch, losses: Mapping[str, Loss], student: Forward) -> dict[str, Pairs]:
        """Begin the losses of pairs of layers."""
        return {
            name: loss.begin(self._orders[batch.pass_name, loss.kind], student.layers(loss.kind), batch)
            for name, loss in losses.items()
            if isinstance(loss, LayerLoss)
        }


def _first_seen(
    task: Task[Any], teacher: nn.Module, batch: Batch, kinds: Set[Reads]
) -> Iterator[tuple[Task[Any], Batch]]:
    """One sample, for a model of another package: where its attention is found, all of a forward's layers are held.

    A task notes what an example is asked of it for, so it is a copy's. Compiled blocks would be compiled for its size.
    """
    if not kinds & OF_ATTENTION or discovery.own_layers(teacher) or any(map(is_compiled, blocks(teacher))):
        return
    task = copy(task)
    samples = task.example(teacher, 1, batch.indices.device) or ()
    yield from ((task, one) for one in samples if one.pass_name == batch.pass_name)


def _note(names: Mapping[Reads, list[str]], kind: Reads, layer: Layer) -> None:
    names[kind].append(layer.name)


class _TeacherDoneError(Exception):
    """The teacher has run as far as losses read it."""


def _forward(output: Output | None, held: Mapping[Reads, Mapping[str, Layer]]) -> Forward:
    assert output is not None, "a loss that is not streamed lets the teacher run to its end"
    layers = (held.get(kind, {}) for kind in (Reads.ATTENTION, Reads.ATTENTION_OUTPUT, Reads.HIDDEN))
    return Forward(output.prediction, output.extra, *layers)
