"""What a run works with: devices, processes, precision."""

import os
from typing import Any

from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin, InitProcessGroupKwargs

from dit_shd.core.devices import accelerator
from dit_shd.core.distributed import PATIENCE, joining
from dit_shd.core.errors import UserError
from dit_shd.tasks import Task
from dit_shd.training.config import TrainConfig

REFUSED = {
    "ACCELERATE_USE_DEEPSPEED": "sharding=fsdp2",
    "ACCELERATE_USE_FSDP": "sharding=fsdp2",
    "ACCELERATE_USE_MEGATRON_LM": "sharding=fsdp2",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "sharding=fsdp2",
    "ACCELERATE_DYNAMO_BACKEND": "compile=true",
}
"""Variables by which `accelerate launch` would have models wrapped, each with the key of a run that takes its place."""


def make_accelerator(config: TrainConfig, task: Task[Any]) -> Accelerator:
    """Join the other processes.

    Args:
        config: Of the run.
        task: With one pass a step, a loss may leave parameters without a gradient; with several each pass needs all.

    Raises:
        UserError: What the launcher says is not enough to find the others, or asks for models to be wrapped.
    """
    for name, instead in REFUSED.items():
        if os.environ.get(name, "").lower() not in ("", "0", "no", "false"):
            raise UserError(
                f"{name}={os.environ[name]}: a run does not leave this to accelerate; take it out of accelerate's "
                f"config (or unset it), {instead} is the run's own"
            )
    AcceleratorState._reset_state()  # an earlier run of this process had perhaps another precision; the group stays
    with joining():
        return Accelerator(
            mixed_precision=config.precision,
            cpu=accelerator() is None,
            log_with=config.tracker,
            project_dir=config.run,
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),  # whatever accelerate's config says
            kwargs_handlers=[
                DistributedDataParallelKwargs(find_unused_parameters=len(task.passes) == 1),
                InitProcessGroupKwargs(timeout=PATIENCE),
            ],
        )
