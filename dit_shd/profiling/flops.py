"""Operations of one training step, by part.

A multiply-add counts as two, as in torch's own counter, which counts the products of the models (attention's backward
has five, the scores computed again among them). Element by element work is not counted.
"""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from dit_shd.attention.capture import Captures
from dit_shd.attention.recording import discovery
from dit_shd.attention.recording.attach import capture
from dit_shd.diffusion.denoiser import Denoiser
from dit_shd.diffusion.schedule import Schedule
from dit_shd.distillation.distiller import Distiller
from dit_shd.profiling import meta
from dit_shd.profiling.step import StepShape
from dit_shd.tasks.diffusion import PassName, predict


@dataclass(frozen=True)
class PassOperations:
    """Of one image in one pass."""

    tokens: int
    """That the encoder sees; fewer in a masked pass."""
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

    passes: dict[PassName, PassOperations]

    @property
    def total(self) -> float:
        """What has to be done: what a share of a device's peak (MFU) is counted from."""
        return sum(each.total for each in self.passes.values())

    @property
    def executed(self) -> float:
        """`total`, and what gradient checkpointing does again."""
        return self.total + sum(each.recomputed for each in self.passes.values())


def step_operations(step: StepShape, student: Any, teacher: Any = None) -> Operations:
    """Count one step, in seconds and without memory; the models may be real ones or without weights.

    A masked pass is counted at its mean ratio.
    """
    named = Distiller(student, step.losses, Schedule.linear()).named_losses()
    images = step.images
    kind = meta.Kind.of(student)
    passes: dict[PassName, PassOperations] = {}
    for name, kept in step.passes.items():
        forward, backward = _counted(kind, kept, backward=True)
        wanted = {key: loss for key, loss in named if name in loss.passes}
        theirs = captures_of(teacher, kept) if any(loss.needs_captures for loss in wanted.values()) else {}
        ours = captures_of(student, kept) if theirs else {}
        again = _counted(kind, kept, True, again=True)[1] - backward if step.recompute else 0
        passes[name] = PassOperations(
            tokens=Denoiser(student).tokens if kept is None else kept,
            teacher=forward_operations(teacher, kept) if wanted else 0,
            forward=forward,
            backward=backward,
            losses={key: loss.cost(theirs, ours, images).operations / images for key, loss in wanted.items()},
            recomputed=again,
        )
    return Operations(passes)


def forward_operations(model: Any, kept: int | None = None) -> int:
    """Of a model's forward on one image."""
    return _counted(meta.Kind.of(model), kept, backward=False)[0]


def captures_of(model: Any, kept: int | None = None) -> Captures:
    """What one image's forward hands to losses: shapes; of other people's attention, which needs numbers, real ones."""
    if all(discovery.is_ours(module) for module in discovery.attention_layers(model).values()):
        return _shapes(meta.Kind.of(model), kept)
    return _captured(model, kept)


@lru_cache(maxsize=64)
def _shapes(kind: meta.Kind, kept: int | None) -> Captures:
    return _captured(kind.skeleton(), kept)


def _captured(model: Any, kept: int | None) -> Captures:
    with torch.no_grad(), capture(model) as found:
        predict(model, meta.batch(model, 1, kept, next(model.parameters()).device))
        return dict(found)


@lru_cache(maxsize=64)
def _counted(kind: meta.Kind, kept: int | None, backward: bool, again: bool = False) -> tuple[int, int]:
    """Operations of forward and, if wanted, backward on one image; `again`: with blocks computed again."""
    model = kind.skeleton()
    if again:
        model.enable_gradient_checkpointing()
    with torch.set_grad_enabled(backward), meta.like_a_gpu("no"), FlopCounterMode(display=False) as counter:
        output = predict(model, meta.batch(model, 1, kept))
        forward = counter.get_total_flops()
        if backward:
            output.sum().backward()
        return forward, counter.get_total_flops() - forward
