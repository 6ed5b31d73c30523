"""What losses work out from their teachers before training."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from dit_shd.attention.recording.attach import capture
from dit_shd.attention.recording.sharded import captured
from dit_shd.distillation.distiller import Distiller
from dit_shd.distillation.losses import Loss
from dit_shd.distillation.teachers import Teachers, by_name, chosen
from dit_shd.tasks import Batch


@torch.no_grad()
def calibrate(
    distiller: Distiller, teachers: nn.Module | Teachers, steps: Iterable[Sequence[Batch]]
) -> dict[str, dict[str, Any]]:
    """Calibrate every loss that is calibrated on batches, each on captures of its own teacher.

    Args:
        distiller: student and losses.
        teachers: frozen models by name, or a single one.
        steps: the passes of the first steps, on the models' device.

    Returns:
        What each loss is to be restored from, by the loss's name.
    """
    known = by_name(teachers)
    calibrated = {name: loss for name, loss in distiller.named_losses() if loss.calibration}
    for number, batches in enumerate(steps):
        for batch in batches:
            readers: dict[str, list[Loss]] = {}
            for name, loss in calibrated.items():
                if number < loss.calibration and loss.takes_part(batch.pass_name):
                    readers.setdefault(chosen(loss.teacher, known, name)[0], []).append(loss)
            for name, losses in readers.items():
                with capture(distiller.student) as student, captured(known[name]) as teacher:
                    distiller.task.predict(distiller.student, batch)
                    distiller.task.predict(known[name], batch)
                for loss in losses:
                    loss.calibrate(teacher, student)
    return {name: loss.calibrated() for name, loss in calibrated.items()}
