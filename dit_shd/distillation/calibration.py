"""Calibration of losses on batches, before training."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from dit_shd.attention.recording.attach import capture
from dit_shd.attention.recording.sharded import captured
from dit_shd.distillation.distiller import Distiller
from dit_shd.distillation.losses import Loss
from dit_shd.distillation.recording import check_named, named_attention
from dit_shd.distillation.teachers import Teachers, by_name, chosen
from dit_shd.models.batch_norms import kept_statistics
from dit_shd.tasks import Batch


@torch.no_grad()
def calibrate(
    distiller: Distiller, teachers: nn.Module | Teachers, steps: Iterable[Sequence[Batch]]
) -> dict[str, dict[str, Any]]:
    """Calibrate every loss that is calibrated on batches, by captures of the teacher that it reads.

    Args:
        distiller: Student and losses.
        teachers: Frozen models by name, or a single one.
        steps: The passes of the first steps, on the models' device.

    Returns:
        Plain data that each loss can be restored from, by the loss's name.

    Raises:
        UserError: A loss reads a teacher that was not given.
    """
    known = by_name(teachers)
    calibrated = {n: loss for n, loss in distiller.named_losses() if loss.calibration and loss.reads_teacher}
    for number, batches in enumerate(steps):
        for batch in batches:
            readers: dict[str, list[Loss]] = {}
            for name, loss in calibrated.items():
                if number < loss.calibration and loss.takes_part(batch.pass_name):
                    readers.setdefault(chosen(loss.teacher, known, name)[0], []).append(loss)
            for name, losses in readers.items():
                student, teacher = distiller.student, known[name]
                with (
                    capture(student, named_attention(losses, "student", student)) as learned,
                    captured(teacher, named_attention(losses, "teacher", teacher)) as taught,
                    kept_statistics(student),
                ):
                    distiller.task.predict(student, batch)
                    distiller.task.predict(teacher, batch)
                check_named(losses, "student", student, learned)
                check_named(losses, "teacher", teacher, taught)
                for loss in losses:
                    loss.calibrate(taught, learned, batch)
    return {name: loss.calibrated() for name, loss in calibrated.items()}
