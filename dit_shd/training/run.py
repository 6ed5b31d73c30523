"""Everything one run holds while it trains."""

from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator
from torch import nn

from dit_shd.distillation.teachers import Teachers
from dit_shd.tasks import Task
from dit_shd.training.batches import Batches
from dit_shd.training.config import TrainConfig
from dit_shd.training.run_folder import RunFolder
from dit_shd.training.services import Services
from dit_shd.training.state import TrainState


@dataclass(frozen=True, eq=False)
class Run:
    """What the steps of setup.py make and the trainer works with."""

    config: TrainConfig
    """Resolved: every default is written out."""
    task: Task[Any]
    accelerator: Accelerator
    folder: RunFolder
    distiller: nn.Module
    """Student and losses as accelerate or FSDP2 prepared them."""
    teachers: Teachers
    """On their device."""
    state: TrainState
    batches: Batches
    services: Services
    first_step: int
    """The step to go on with, from 0."""
    decodes: bool
    """Whether sampling from the run gives images by itself."""
