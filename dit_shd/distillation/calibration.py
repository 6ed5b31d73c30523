"""What some losses want to know of the teacher before training."""

import logging
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from dit_shd.attention.recording.attach import capture
from dit_shd.attention.recording.sharded import captured
from dit_shd.distillation.distiller import Distiller
from dit_shd.tasks.diffusion import Batch, PassName, predict

Passes = dict[PassName, Batch]
_log = logging.getLogger("dit_shd")


@torch.no_grad()
def calibrate(distiller: Distiller, teacher: nn.Module, batches: Iterable[Passes]) -> dict[str, Any]:
    """Show the batches to every loss that wants some; what each found, by its name."""
    wanting = {name: loss for name, loss in distiller.named_losses() if loss.calibration}
    for number, passes in enumerate(batches):
        for name, batch in passes.items():
            losses = [loss for loss in wanting.values() if number < loss.calibration and name in loss.passes]
            if not losses:
                continue
            with capture(distiller.student) as ours, captured(teacher) as theirs:
                predict(distiller.student, batch)
                predict(teacher, batch)
            for loss in losses:
                loss.calibrate(theirs, ours)
    return {name: loss.calibrated() for name, loss in wanting.items()}
