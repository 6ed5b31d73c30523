"""What a training step does, apart from its two models: all that its operations and its memory depend on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer

from dit_shd.distillation.losses import Loss
from dit_shd.tasks import Task

Precision = Literal["no", "bf16", "fp16"]


@dataclass(frozen=True)
class StepShape:
    """One training step in one process."""

    task: Task[Any]
    losses: Sequence[Loss]
    images: int
    """Of one micro batch."""
    build_optimizer: Callable[[list[nn.Parameter]], Optimizer]
    optimizer: str
    """Its name."""
    averages: int = 1
    """Weight averages that are kept."""
    recompute: bool = False
    """The student's blocks are computed again in the backward."""
    precision: Precision = "no"
    teacher_precision: Literal["no", "bf16"] = "no"
