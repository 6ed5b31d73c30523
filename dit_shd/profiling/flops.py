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

from dit_shd.core.errors import UserError
from dit_shd.distillation.distiller import Distiller
from dit_shd.distillation.guided import guided_teachers
from dit_shd.distillation.schedule import end_of
from dit_shd.distillation.teachers import Teachers, by_name, read_teachers
from dit_shd.models.batch_norms import evaluated_norms
from dit_shd.profiling import meta
from dit_shd.profiling.captures import example
from dit_shd.profiling.flop_counter import flop_counter
from dit_shd.profiling.loss_cost import build_losses, loss_costs
from dit_shd.profiling.step import StepShape
from dit_shd.tasks import Task


@dataclass(frozen=True)
class PassOperations:
    """Operations for one image in one pass."""

    tokens: int
    """Tokens in the encoder; fewer where a pass leaves some out."""
    teacher: float
    """Of whole forwards, also where one stops after the last layer that losses read."""
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


def step_operations(
    step: StepShape, student: nn.Module, teachers: nn.Module | Teachers | None = None, number: int = 0
) -> Operations:
    """Count one step, in seconds and without memory; the models may be on the meta device.

    Passes of random size are counted at its mean.

    Args:
        step: What it is made of.
        student: That learns.
        teachers: By name, or a single one.
        number: Of the step: losses that have ended are not computed.
    """
    distiller, task, by_key = Distiller(step.task, student, step.losses), step.task, by_name(teachers)
    build_losses(distiller, by_key)
    spec = meta.ModelSpec.of(student)
    passes: dict[str, PassOperations] = {}
    for name in task.passes:
        forward, backward = _counted(spec, task, name, backward=True)
        losses = distiller.losses_of(name, number)
        required, twice = read_teachers(losses, by_key), guided_teachers(losses, by_key)
        recomputed = _counted(spec, task, name, True, recompute=True)[1] - backward if step.recompute else 0
        passes[name] = PassOperations(
            tokens=task.tokens_seen(student, example(task, name, student, meta.META)),
            teacher=sum(forward_operations(by_key[teacher], task, name) for teacher in [*required, *twice]),
            forward=forward,
            backward=backward,
            losses={
                key: cost.operations / step.images
                for key, cost in loss_costs(losses, task, name, student, by_key, step.images).items()
            },
            recomputed=recomputed,
        )
    return Operations(passes)


def operations_by_step(
    step: StepShape, student: nn.Module, teachers: nn.Module | Teachers | None, steps: int
) -> dict[int, Operations]:
    """Operations of a step, from each step on at which they change, in order: 0, and where losses end.

    Args:
        step: What it is made of.
        student: That learns.
        teachers: By name, or a single one.
        steps: Of the run.
    """
    ends = {end for loss in step.losses if (end := end_of(loss.weight)) is not None and end < steps}
    return {first: step_operations(step, student, teachers, first) for first in (0, *sorted(ends))}


def run_operations(by_step: Mapping[int, Operations], steps: int) -> float:
    """Operations of all steps for one image in each, with recomputation.

    Args:
        by_step: From each step on at which they change, in order.
        steps: Of the run.
    """
    ends = [*list(by_step)[1:], steps]
    return sum(each.executed * (end - first) for (first, each), end in zip(by_step.items(), ends))


def forward_operations(model: nn.Module, task: Task[Any], pass_name: str = "plain") -> int:
    """Operations of a model's forward on one image."""
    return _counted(meta.ModelSpec.of(model), task, pass_name, backward=False)[0]


@lru_cache(maxsize=64)
def _counted(
    spec: meta.ModelSpec, task: Task[Any], pass_name: str, backward: bool, recompute: bool = False
) -> tuple[int, int]:
    """Operations of the forward and, if `backward`, of the backward on one image."""
    model = spec.skeleton()
    if not backward:
        model.requires_grad_(False)  # torch's counter stumbles over a view of a parameter that learns, without a graph
    if recompute:
        meta.recompute_blocks(model, "no")
    grad, gpu, norms = torch.set_grad_enabled(backward), meta.emulate_gpu("no"), evaluated_norms(model)
    with grad, gpu, norms, flop_counter() as counter:  # blocks are recomputed in the backward
        try:
            output = task.predict(model, example(task, pass_name, model, meta.META))
        except NotImplementedError as error:
            raise UserError(f"{spec.cls.__name__}: its forward reads values, so that it cannot be counted") from error
        forward = counter.get_total_flops()
        if backward:
            torch.stack([x.sum() for x in (output.prediction, *output.extra.values())]).sum().backward()
        return forward, counter.get_total_flops() - forward
