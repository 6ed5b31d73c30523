"""What some losses want to know of the teacher before training."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from dit_shd.attention.recording.attach import capture
from dit_shd.attention.recording.sharded import captured
from dit_shd.distillation.distiller import Distiller
from dit_shd.tasks import Batch


@torch.no_grad()
def calibrate(distiller: Distiller, teacher: nn.Module, steps: Iterable[Sequence[Batch]]) -> dict[str, Any]:
    """Show the batches of some steps to every loss that wants some; what each found, by its name."""
    wanting = {name: loss for name, loss in distiller.named_losses() if loss.calibration}
    for number, batches in enumerate(steps):
        for batch in batches:
            losses = [loss for loss in wanting.values() if number < loss.calibration and batch.pass_name in loss.passes]
            if not losses:
                continue
            with capture(distiller.student) as ours, captured(teacher) as theirs:
                distiller.task.predict(distiller.student, batch)
                distiller.task.predict(teacher, batch)
            for loss in losses:
                loss.calibrate(theirs, ours)
    return {name: loss.calibrated() for name, loss in wanting.items()}
