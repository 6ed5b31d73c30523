"""Checks of what teachers predict, before anything is written."""

import logging
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dit_shd.core.distributed import run_on_main
from dit_shd.core.errors import UserError
from dit_shd.distillation.teachers import Teachers, role
from dit_shd.tasks import Task
from dit_shd.training.config import TrainConfig
from dit_shd.training.run_folder import RunFolder

if TYPE_CHECKING:
    from accelerate import Accelerator

_log = logging.getLogger("dit_shd")


def check_teachers(config: TrainConfig, task: Task[Any], teachers: Teachers, accelerator: "Accelerator") -> None:
    """Check the teachers of a new run by the task, in the main process, and log the findings.

    Args:
        config: The config of the run.
        task: What they are to teach.
        teachers: The teachers, by name.
        accelerator: The accelerator of the run.

    Raises:
        UserError: A teacher has a fault, and the config does not say to go on.
    """
    if not teachers:
        return

    def act() -> None:
        if RunFolder(config.run).newest is not None:  # they were checked when the run began
            return
        with accelerator.autocast():
            for name, teacher in teachers.items():
                _check(config, task, name, teacher, accelerator.device)

    run_on_main(act)


def _check(config: TrainConfig, task: Task[Any], name: str, teacher: nn.Module, device: torch.device) -> None:
    for finding in task.check_teacher(teacher, config.seed, device, measure=config.check_teacher != "no"):
        if finding.message:
            _log.info("%s%s", "" if len(config.teachers) == 1 else f"{name}: ", finding.message)
        if finding.fault is None:
            continue
        line = f"{role(name)}: {config.teachers[name]} does not do what is wanted: {finding.fault}"
        if config.check_teacher == "refuse":
            raise UserError(f"{line}; check_teacher=warn goes on all the same")
        _log.warning("%s", line)
