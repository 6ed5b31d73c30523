"""Cost of losses apart from both models: their own formula, or a count of their forward and backward on shapes."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dit_shd.attention.capture import Capture, Captures
from dit_shd.core.errors import UserError
from dit_shd.distillation.distiller import Distiller
from dit_shd.distillation.losses import LAYERS, Layer, LayerLoss, Loss
from dit_shd.distillation.recording import Role, named_attention
from dit_shd.distillation.records import Forward, Reads
from dit_shd.distillation.teachers import Teachers, chosen
from dit_shd.profiling import meta
from dit_shd.profiling.captures import Named, captures_of, forward_of
from dit_shd.profiling.flop_counter import flop_counter
from dit_shd.squeezing.cost import LayerCost
from dit_shd.tasks import Batch, Task


def build_losses(distiller: Distiller, teachers: Teachers) -> None:
    """Make what losses learn, as Distiller.build, from shapes where those serve.

    Args:
        distiller: Student, perhaps without memory, and losses.
        teachers: The teachers, by name, likewise.
    """
    for name in distiller.task.passes:
        for key, loss in distiller.losses_of(name).items():
            if loss.learns and not loss.fields:  # there are no data here
                forwards = _forwards(key, loss, distiller.task, name, distiller.student, teachers)
                loss.build(*forwards)


def loss_costs(
    losses: Mapping[str, Loss], task: Task[Any], pass_name: str, student: nn.Module, teachers: Teachers, images: int
) -> dict[str, LayerCost]:
    """The cost of each loss in one pass, apart from both models.

    Args:
        losses: The losses, by name, with what they learn.
        task: What is learned.
        pass_name: The pass name of the task.
        student: Perhaps without memory.
        teachers: The teachers, by name, likewise.
        images: The number of images in the pass.
    """
    costs: dict[str, LayerCost] = {}
    for key, loss in losses.items():
        teacher = _teacher(key, loss, teachers)
        taught = _captures(loss, task, pass_name, "student", student, teacher)
        teaching = {} if teacher is None else _captures(loss, task, pass_name, "teacher", teacher, student)
        cost = loss.cost(teaching, taught, images)
        if cost is None:
            cost = _counted(loss, *_forwards(key, loss, task, pass_name, student, teachers), images)
        costs[key] = cost
    return costs


def _captures(
    loss: Loss, task: Task[Any], pass_name: str, role: Role, model: nn.Module, like: nn.Module | None
) -> Captures:
    """The attention of a model, for a loss that reads layers; a loss of other layers does without if it has none."""
    if not LAYERS & loss.reads:
        return {}
    try:
        return captures_of(model, task, pass_name, _named(loss, role, model), like)
    except UserError:
        if Reads.ATTENTION in loss.reads:
            raise
        return {}


def kept_numbers(
    losses: Mapping[str, Loss], task: Task[Any], pass_name: str, student: nn.Module, teachers: Teachers
) -> int:
    """How many numbers of one image losses read in a student's attention, which are kept where blocks run again.

    Args:
        losses: The losses, by name.
        task: What is learned.
        pass_name: The pass name of the task.
        student: Perhaps without memory.
        teachers: The teachers, by name, likewise.
    """
    layers: dict[str, Capture] = {}
    for key, loss in losses.items():
        if Reads.ATTENTION in loss.reads:
            named = _named(loss, "student", student)
            layers |= captures_of(student, task, pass_name, named, _teacher(key, loss, teachers))
    return sum(x.query.numel() + x.key.numel() + x.value.numel() for x in layers.values())


def _teacher(key: str, loss: Loss, teachers: Teachers) -> nn.Module | None:
    return teachers[chosen(loss.teacher, teachers, key)[0]] if loss.reads_teacher else None


def _forwards(
    key: str, loss: Loss, task: Task[Any], pass_name: str, student: nn.Module, teachers: Teachers
) -> tuple[Forward, Any, Batch]:
    """Both models' forwards as far as a loss reads them, on one device, and the student's batch."""
    taught, batch = forward_of(student, task, pass_name, loss.reads, _named(loss, "student", student))
    teacher = _teacher(key, loss, teachers)
    if teacher is None:
        return taught, None, batch
    teaching, _ = forward_of(teacher, task, pass_name, loss.reads, _named(loss, "teacher", teacher))
    return taught, teaching, batch


def _named(loss: Loss, role: Role, model: nn.Module) -> Named:
    named = named_attention([loss], role, model)
    return None if named is None else tuple(named)


def _counted(loss: Loss, student: Forward, teacher: Forward | None, batch: Batch, images: int) -> LayerCost:
    """Operations of forward and backward of one image times images, what is held in between, and the peak."""
    device = student.prediction.device
    loss = copy.deepcopy(loss).to_empty(device=device)
    student, batch = _leaves(student), replace(batch, indices=torch.arange(len(batch.indices)))
    with meta.MemoryTracker(loss) as memory, flop_counter() as counter:
        if isinstance(loss, LayerLoss):
            assert teacher is not None, "a sum over pairs of layers needs a teacher"
            sources = teacher.layers(loss.kind)
            pairs = loss.begin(list(sources), student.layers(loss.kind), batch)
            for layer in sources.values():
                pairs(layer)
            term = pairs.term()
        else:
            term = loss.term(student, teacher, batch)  # type: ignore[arg-type]
        held = memory.now
        term.value.sum().backward()
    return LayerCost(float(counter.get_total_flops()) * images, held * images, (memory.peak - held) * images)


def _leaves(forward: Forward) -> Forward:
    """The same whose layers are leaves of a graph."""
    kinds = {name: getattr(forward, name) for name in ("attention", "attention_output", "hidden")}
    leaves = {kind: {name: _leaf(layer) for name, layer in layers.items()} for kind, layers in kinds.items()}
    return replace(forward, **leaves)


def _leaf(layer: Layer) -> Layer:
    if layer.attention is not None:
        attention: Capture = layer.attention
        tensors = {name: _learning(getattr(attention, name)) for name in ("query", "key", "value")}
        return replace(layer, attention=replace(attention, out=None, **tensors))
    assert layer.hidden is not None
    return replace(layer, hidden=_learning(layer.hidden))


def _learning(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor).requires_grad_()
