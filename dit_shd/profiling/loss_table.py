"""Every loss in one line: what it reads, what it needs, what it costs at a pair of sizes, and its paper."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from dit_shd.core.plugins import Plugin
from dit_shd.distillation.distiller import Distiller
from dit_shd.distillation.losses import LAYERS, LOSSES, Loss
from dit_shd.profiling import meta
from dit_shd.profiling.flops import step_operations
from dit_shd.profiling.loss_cost import build_losses, loss_costs
from dit_shd.profiling.step import StepShape
from dit_shd.tasks import Task

OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "tinybert": {"heads": "mean"},
    "vitkd": {"prefix_tokens": 0},
}
"""Keys with which a loss is counted, where its defaults do not fit two sizes of one family."""
UNCOUNTED = {
    "minilm": "wants equal heads",
    "nkd": "for classes",
    "kd": "for classes and tokens",
    "repa": "depends on the encoder",
}
"""Losses that are not counted for this pair, and why."""


@dataclass(frozen=True)
class LossEntry:
    """One loss."""

    name: str
    summary: str
    reads: str
    needs: str
    paper: str
    share: float | None
    """Its operations over those of both models in a step without it, in one plain pass; None if it is not counted."""
    parameters: int | None
    """That it learns."""
    note: str = ""
    """Why it is not counted, or with which keys."""


def loss_table(
    task: Task[Any],
    student: str = "S/2",
    teacher: str = "B/2",
    sample_size: int = 32,
    names: Sequence[str] | None = None,
) -> list[LossEntry]:
    """Losses, counted for two sizes of MDTv2.

    Args:
        task: The task of one pass.
        student: Size of the student.
        teacher: Size of the teacher.
        sample_size: Height and width of a latent; 32 is 256 tokens.
        names: Of the losses; None for all.
    """
    taught, teaching = (
        meta.build(Plugin("mdt", {"size": size, "sample_size": sample_size}), "model") for size in (student, teacher)
    )
    step = StepShape(task, [LOSSES.find("output")()], 1, lambda _: None, "none")  # type: ignore[arg-type, return-value]
    plain = step_operations(step, taught, teaching).total
    return [_entry(name, task, taught, teaching, plain) for name in names or LOSSES.names()]


def _entry(name: str, task: Task[Any], student: nn.Module, teacher: nn.Module, plain: float) -> LossEntry:
    cls = LOSSES.find(name)
    reads = ", ".join(sorted(part.value for part in cls.reads)) + ("" if cls.needs_teacher else " (no teacher)")
    needs = ", ".join(sorted(need.value for need in cls.needs))
    summary = (inspect.getmodule(cls).__doc__ or "").partition("\n")[0].rstrip(".")  # type: ignore[union-attr]
    if name in UNCOUNTED:
        return LossEntry(name, summary, reads, needs, cls.paper, None, None, UNCOUNTED[name])
    options = dict(OPTIONS.get(name, {}))
    loss: Loss = LOSSES.build(Plugin(name, options))
    share = 0.0
    if loss.reads & LAYERS:
        build_losses(Distiller(task, student, [loss]), {"teacher": teacher})
        (cost,) = loss_costs({name: loss}, task, task.passes[0], student, {"teacher": teacher}, 1).values()
        share = cost.operations / plain
    parameters = sum(p.numel() for p in loss.parameters())
    note = ", ".join(f"{key}: {value}" for key, value in options.items() if key == "heads")
    return LossEntry(name, summary, reads, needs, cls.paper, share, parameters, note)
