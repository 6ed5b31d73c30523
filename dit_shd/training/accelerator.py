"""What a run works with: devices, processes, precision."""

from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

from dit_shd.core.distributed import joining
from dit_shd.tasks import Task
from dit_shd.training.config import TrainConfig

PATIENCE = timedelta(hours=3)
"""How long processes wait for the main one, which may be scoring or saving; NCCL's own is 10 minutes."""


def make_accelerator(config: TrainConfig, task: Task[Any]) -> Accelerator:
    """Join the other processes.

    Args:
        config: Of the run.
        task: With one pass a step, a loss may leave parameters without a gradient; with several each pass needs all.

    Raises:
        UserError: What the launcher says is not enough to find the others.
    """
    with joining():
        return Accelerator(
            mixed_precision=config.precision,
            cpu=not torch.accelerator.is_available(),
            log_with=config.tracker,
            project_dir=config.run,
            kwargs_handlers=[
                DistributedDataParallelKwargs(find_unused_parameters=len(task.passes) == 1),
                InitProcessGroupKwargs(timeout=PATIENCE),
            ],
        )
