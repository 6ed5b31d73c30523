"""Operations of one training step, by component.

A multiply-add counts as two, as in torch's own counter, which counts the products of the models (attention's backward
has five, the scores computed again among them). Element by element work is not counted.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dit_shd.attention.capture import Captures
from dit_shd.attention.recording import discovery
from dit_shd.attention.recording.attach import capture
from dit_shd.core.dtensor import is_sharded
from dit_shd.core.errors import UserError
from dit_shd.distillation.distiller import Distiller
from dit_shd.distillation.losses import LAYERS, Loss
from dit_shd.distillation.teachers import Teachers, by_name, chosen, read_teachers
from dit_shd.profiling import meta
from dit_shd.profiling.attention_shapes import recorded_calls
from dit_shd.profiling.step import StepShape
from dit_shd.squeezing.cost import LayerCost
from dit_shd.tasks import Batch, Task

MOST_BUILT = 300_000_000
"""Parameters of a model that is built with random weights to see what its attention is."""


@dataclass(frozen=True)
class PassOperations:
    """Operations for one image in one pass."""

    tokens: int
    """Tokens in the encoder; fewer where a pass leaves some out."""
    teacher: float
    forward: float
    backward: float
    losses: dict[str, float] = field(default_factory=dict)
    """Of each loss, apart from both models."""
    recomputed: float = 0
    """Of gradient checkpointing; not part of `total`."""

    @property
    def total(self) -> float:
        """All operations without recomputation."""
        return self.teacher + self.forward + self.backward + sum(self.losses.values())


@dataclass(frozen=True)
class Operations:
    """Operations for one image in one training step."""

    passes: dict[str, PassOperations]

    @property
    def total(self) -> float:
        """Operations that are required, from which a share of a device's peak (MFU) is counted."""
        return sum(one.total for one in self.passes.values())

    @property
    def executed(self) -> float:
        """`total` and recomputation by gradient checkpointing."""
        return self.total + sum(one.recomputed for one in self.passes.values())


def step_operations(step: StepShape, student: nn.Module, teachers: nn.Module | Teachers | None = None) -> Operations:
    """Count one step, in seconds and without memory; the models may be on the meta device.

    Passes of random size are counted at its mean.
    """
    distiller, task, by_key = Distiller(step.task, student, step.losses), step.task, by_name(teachers)
    spec = meta.ModelSpec.of(student)
    passes: dict[str, PassOperations] = {}
    for name in task.passes:
        forward, backward = _counted(spec, task, name, backward=True)
        losses = distiller.losses_of(name)
        required = read_teachers(losses, by_key)
        recomputed = _counted(spec, task, name, True, recompute=True)[1] - backward if step.recompute else 0
        passes[name] = PassOperations(
            tokens=task.tokens_seen(student, _example(task, name, student, meta.META)),
            teacher=sum(forward_operations(by_key[teacher], task, name) for teacher in required),
            forward=forward,
            backward=backward,
            losses={
                key: cost.operations / step.images
                for key, cost in loss_costs(losses, task, name, student, by_key, step.images).items()
            },
            recomputed=recomputed,
        )
    return Operations(passes)


def loss_costs(
    losses: Mapping[str, Loss], task: Task[Any], pass_name: str, student: nn.Module, teachers: Teachers, images: int
) -> dict[str, LayerCost]:
    """The cost of each loss in one pass, apart from both models."""
    costs: dict[str, LayerCost] = {}
    for key, loss in losses.items():
        teacher_captures, student_captures = {}, {}
        if LAYERS & loss.reads and loss.reads_teacher:
            teacher_captures = captures_of(teachers[chosen(loss.teacher, teachers, key)[0]], task, pass_name)
            student_captures = captures_of(student, task, pass_name)
        costs[key] = loss.cost(teacher_captures, student_captures, images)
    return costs


def forward_operations(model: nn.Module, task: Task[Any], pass_name: str = "plain") -> int:
    """Operations of a model's forward on one image."""
    return _counted(meta.ModelSpec.of(model), task, pass_name, backward=False)[0]


def captures_of(model: nn.Module, task: Task[Any], pass_name: str = "plain") -> Captures:
    """The captures of one image's forward: shapes only, or real tensors for attention of other packages."""
    if discovery.own_layers(model):
        return _shapes(meta.ModelSpec.of(model), task, pass_name)
    if is_sharded(model) or any(parameter.is_meta for parameter in model.parameters()):
        if sum(parameter.numel() for parameter in model.parameters()) > MOST_BUILT:
            return _called(meta.ModelSpec.of(model), task, pass_name)
        return _random_captures(meta.ModelSpec.of(model), task, pass_name)
    return _captured(model, task, pass_name)


@lru_cache(maxsize=64)
def _called(spec: meta.ModelSpec, task: Task[Any], pass_name: str) -> Captures:
    model = spec.skeleton()
    with torch.no_grad(), recorded_calls(model) as captures:
        task.predict(model, _example(task, pass_name, model, meta.META))
    return captures


@lru_cache(maxsize=64)
def _random_captures(spec: meta.ModelSpec, task: Task[Any], pass_name: str) -> Captures:
    return _captured(spec.build(), task, pass_name)


@lru_cache(maxsize=64)
def _shapes(spec: meta.ModelSpec, task: Task[Any], pass_name: str) -> Captures:
    return _captured(spec.skeleton(), task, pass_name)


def _captured(model: nn.Module, task: Task[Any], pass_name: str) -> Captures:
    with torch.no_grad(), capture(model) as captures:
        task.predict(model, _example(task, pass_name, model, next(model.parameters()).device))
        return dict(captures)


@lru_cache(maxsize=64)
def _counted(
    spec: meta.ModelSpec, task: Task[Any], pass_name: str, backward: bool, recompute: bool = False
) -> tuple[int, int]:
    """Operations of the forward and, if `backward`, of the backward on one image."""
    model = spec.skeleton()
    if recompute:
        meta.recompute_blocks(model, "no")
    with torch.set_grad_enabled(backward), meta.emulate_gpu("no"), FlopCounterMode(display=False) as counter:
        try:
            output = task.predict(model, _example(task, pass_name, model, meta.META))
        except NotImplementedError as error:
            raise UserError(f"{spec.cls.__name__}: its forward reads values, so that it cannot be counted") from error
        forward = counter.get_total_flops()
        if backward:
            torch.stack([x.sum() for x in (output.prediction, *output.extra.values())]).sum().backward()
        return forward, counter.get_total_flops() - forward


def _example(task: Task[Any], pass_name: str, model: nn.Module, device: torch.device) -> Batch:
    """A batch of one image in one pass."""
    (example,) = [batch for batch in task.example(model, 1, device) if batch.pass_name == pass_name]
    return example
