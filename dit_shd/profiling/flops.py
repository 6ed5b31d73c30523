"""Operations of one training step, by part.

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
from dit_shd.distillation.distiller import Distiller
from dit_shd.distillation.losses import Loss, Reads
from dit_shd.distillation.teachers import Teachers, by_name, chosen, read_teachers
from dit_shd.profiling import meta
from dit_shd.profiling.step import StepShape
from dit_shd.squeezing.cost import LayerCost
from dit_shd.tasks import Task
from dit_shd.tasks.diffusion import Diffusion

PLAIN = Diffusion(mask_ratio=None)
"""How a class-conditional model is asked where nothing else is said."""


@dataclass(frozen=True)
class PassOperations:
    """Of one image in one pass."""

    tokens: int
    """That the encoder sees; fewer where a pass leaves some out."""
    teacher: float
    forward: float
    backward: float
    losses: dict[str, float] = field(default_factory=dict)
    """What a loss computes beside both models."""
    recomputed: float = 0
    """What gradient checkpointing does again; not part of `total`."""

    @property
    def total(self) -> float:
        return self.teacher + self.forward + self.backward + sum(self.losses.values())


@dataclass(frozen=True)
class Operations:
    """Of one image in one training step."""

    passes: dict[str, PassOperations]

    @property
    def total(self) -> float:
        """What has to be done: what a share of a device's peak (MFU) is counted from."""
        return sum(each.total for each in self.passes.values())

    @property
    def executed(self) -> float:
        """`total`, and what gradient checkpointing does again."""
        return self.total + sum(each.recomputed for each in self.passes.values())


def step_operations(step: StepShape, student: Any, teachers: nn.Module | Teachers | None = None) -> Operations:
    """Count one step, in seconds and without memory; the models may be real ones or without weights.

    Passes whose size is drawn are counted at its mean.
    """
    distiller, task, known = Distiller(step.task, student, step.losses), step.task, by_name(teachers)
    kind = meta.ModelSpec.of(student)
    passes: dict[str, PassOperations] = {}
    for name in task.passes:
        forward, backward = _counted(kind, task, name, backward=True)
        losses = distiller.losses_of(name)
        asked = read_teachers(losses, known)
        again = _counted(kind, task, name, True, again=True)[1] - backward if step.recompute else 0
        passes[name] = PassOperations(
            tokens=task.tokens_seen(student, _example(task, name, student, meta.META)),
            teacher=sum(forward_operations(known[teacher], task, name) for teacher in asked),
            forward=forward,
            backward=backward,
            losses={
                key: cost.operations / step.images
                for key, cost in loss_costs(losses, task, name, student, known, step.images).items()
            },
            recomputed=again,
        )
    return Operations(passes)


def loss_costs(
    losses: Mapping[str, Loss], task: Task[Any], pass_name: str, student: Any, teachers: Teachers, images: int
) -> dict[str, LayerCost]:
    """What each loss computes in one pass beside both models."""
    costs: dict[str, LayerCost] = {}
    for key, loss in losses.items():
        theirs, ours = {}, {}
        if Reads.ATTENTION in loss.reads and loss.reads_teacher:
            theirs = captures_of(teachers[chosen(loss.teacher, teachers, key)], task, pass_name)
            ours = captures_of(student, task, pass_name)
        costs[key] = loss.cost(theirs, ours, images)
    return costs


def forward_operations(model: Any, task: Task[Any] = PLAIN, pass_name: str = "plain") -> int:
    """Of a model's forward on one image."""
    return _counted(meta.ModelSpec.of(model), task, pass_name, backward=False)[0]


def captures_of(model: Any, task: Task[Any] = PLAIN, pass_name: str = "plain") -> Captures:
    """What one image's forward hands to losses: shapes; of other people's attention, which needs numbers, real ones."""
    if discovery.own_layers(model):
        return _shapes(meta.ModelSpec.of(model), task, pass_name)
    return _captured(model, task, pass_name)


@lru_cache(maxsize=64)
def _shapes(kind: meta.ModelSpec, task: Task[Any], pass_name: str) -> Captures:
    return _captured(kind.skeleton(), task, pass_name)


def _captured(model: Any, task: Task[Any], pass_name: str) -> Captures:
    with torch.no_grad(), capture(model) as found:
        task.predict(model, _example(task, pass_name, model, next(model.parameters()).device))
        return dict(found)


@lru_cache(maxsize=64)
def _counted(
    kind: meta.ModelSpec, task: Task[Any], pass_name: str, backward: bool, again: bool = False
) -> tuple[int, int]:
    """Operations of forward and, if wanted, backward on one image; `again`: with blocks computed again."""
    model = kind.skeleton()
    if again:
        model.enable_gradient_checkpointing()
    with torch.set_grad_enabled(backward), meta.emulate_gpu("no"), FlopCounterMode(display=False) as counter:
        output = task.predict(model, _example(task, pass_name, model, meta.META))
        forward = counter.get_total_flops()
        if backward:
            torch.stack([x.sum() for x in (output.prediction, *output.extra.values())]).sum().backward()
        return forward, counter.get_total_flops() - forward


def _example(task: Task[Any], pass_name: str, model: Any, device: torch.device) -> Any:
    """One image in one pass."""
    (found,) = [batch for batch in task.example(model, 1, device) if batch.pass_name == pass_name]
    return found
