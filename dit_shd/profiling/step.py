"""Everything besides the models that operations and memory of a training step depend on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn
from torch.optim import Optimizer

from dit_shd.distillation.losses import Loss
from dit_shd.models.quantization import Precision as TeacherPrecision
from dit_shd.tasks import Task

Precision = Literal["no", "bf16", "fp16"]


@dataclass(frozen=True)
class StepShape:
    """One training step in one process."""

    task: Task[Any]
    losses: Sequence[Loss]
    images: int
    """Images of one micro batch."""
    build_optimizer: Callable[[list[nn.Parameter]], Optimizer]
    optimizer: str
    """Name of the optimizer."""
    averages: int = 1
    """Number of weight averages."""
    recompute: bool = False
    """Whether the backward computes the student's blocks again (gradient checkpointing)."""
    precision: Precision = "no"
    teacher_precision: TeacherPrecision = "no"
    teacher_offload: Literal["no", "blocks"] = "no"
