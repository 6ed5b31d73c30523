"""Whether a teacher does what we think: said, and refused, before anything is written."""

import logging
from typing import TYPE_CHECKING, Any

from torch import nn

from dit_shd.core.distributed import run_on_main
from dit_shd.core.errors import UserError
from dit_shd.tasks import Task
from dit_shd.training.config import TrainConfig
from dit_shd.training.run_folder import RunFolder

if TYPE_CHECKING:
    from accelerate import Accelerator

_log = logging.getLogger("dit_shd")


def check_teacher(config: TrainConfig, task: Task[Any], teacher: nn.Module | None, accelerator: "Accelerator") -> None:
    """Have the task judge the teacher of a new run, and say what was found. The main process does, on its device.

    Raises:
        UserError: it does not do what we think, and the config does not say to go on.
    """
    if teacher is None:
        return

    def act() -> None:
        if RunFolder(config.run).newest is not None:  # it was judged when the run began
            return
        with accelerator.autocast():
            measure = config.check_teacher != "no"
            for finding in task.check_teacher(teacher, config.seed, accelerator.device, measure):
                if finding.message:
                    _log.info("%s", finding.message)
                if finding.fault is None:
                    continue
                line = f"teacher: {config.teacher} does not do what is wanted: {finding.fault}"
                if config.check_teacher == "refuse":
                    raise UserError(f"{line}; check_teacher=warn goes on all the same")
                _log.warning("%s", line)

    run_on_main(act)
