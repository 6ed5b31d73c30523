"""Operations of one training step, by part.

A multiply-add counts as two, as in torch's own counter, which counts the products of the models (attention's backward
has five, the scores computed again among them). Element by element work is not counted.
"""

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dit_shd.attention import Captures, capture, support
from dit_shd.batch import Batch, PassName
from dit_shd.cost import weightless
from dit_shd.diffusion import Schedule
from dit_shd.distiller import Distiller, predict

if TYPE_CHECKING:
    from dit_shd.train_config import TrainConfig


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


def step_operations(config: "TrainConfig", student: Any, teacher: Any = None) -> Operations:
    """Count one step, in seconds and without memory; the models may be real ones or without weights.

    A masked pass is counted at its mean ratio.
    """
    losses = [p.build("losses", f"losses.{i}") for i, p in enumerate(config.losses)]
    distiller = Distiller(weightless.skeleton(student), losses, Schedule.linear())
    images = config.micro_batch_size or max(1, config.batch_size // int(os.environ.get("WORLD_SIZE", "1")))
    passes: dict[PassName, PassOperations] = {}
    for name, kept in kept_tokens(config, distiller.student).items():
        batch = weightless.batch(distiller.student, 1, kept)
        forward, backward, ours = _counted(distiller.student, batch)
        wanted = {key: loss for key, loss in distiller.named_losses() if name in loss.passes}
        theirs = captures_of(teacher, kept) if any(loss.needs_captures for loss in wanted.values()) else {}
        passes[name] = PassOperations(
            tokens=tokens_of(student) if kept is None else kept,
            teacher=forward_operations(teacher, kept) if wanted else 0,
            forward=forward,
            backward=backward,
            losses={key: loss.cost(theirs, ours, images).operations / images for key, loss in wanted.items()},
            recomputed=_recomputed(distiller.student, batch, backward) if config.gradient_checkpointing else 0,
        )
    return Operations(passes)


def kept_tokens(config: "TrainConfig", student: Any) -> dict[PassName, int | None]:
    """Pass -> the tokens its encoder sees, at the mean ratio; None for all."""
    passes: dict[PassName, int | None] = {"plain": None}
    if config.mask_ratio is not None:
        passes["masked"] = max(1, int(student.tokens * (1 - config.mask_ratio - 0.1)))
    return passes


def tokens_of(model: Any) -> int:
    """n of a plain pass."""
    return (model.config.sample_size // model.config.patch_size) ** 2


def forward_operations(model: Any, kept: int | None = None) -> int:
    """Of a model's forward on one image."""
    bare = weightless.skeleton(model)
    with torch.no_grad(), weightless.like_a_gpu("no"), FlopCounterMode(display=False) as counter:
        predict(bare, weightless.batch(bare, 1, kept))
    return counter.get_total_flops()


def captures_of(model: Any, kept: int | None = None) -> Captures:
    """What one image's forward hands to losses: shapes; of other people's attention, which needs numbers, real ones."""
    bare = weightless.skeleton(model)
    ours = all(support.is_ours(module) for module in support.attention_layers(bare).values())
    chosen = bare if ours else model
    with torch.no_grad(), capture(chosen) as found:
        predict(chosen, weightless.batch(chosen, 1, kept, next(chosen.parameters()).device))
        return dict(found)


def _counted(student: nn.Module, batch: Batch) -> tuple[int, int, Captures]:
    """Operations of forward and backward, and the captures of the forward."""
    with weightless.like_a_gpu("no"), FlopCounterMode(display=False) as counter:
        with capture(student) as found:
            output = predict(student, batch)
            forward, captures = counter.get_total_flops(), dict(found)
        output.sum().backward()
        return forward, counter.get_total_flops() - forward, captures


def _recomputed(student: Any, batch: Batch, backward: int) -> int:
    student.enable_gradient_checkpointing()
    try:
        return _counted(student, batch)[1] - backward
    finally:
        student.disable_gradient_checkpointing()
