"""The teacher's prediction under classifier-free guidance, as the target of losses that want it."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from dit_shd.diffusion.guidance import Guidance
from dit_shd.distillation.losses import Loss
from dit_shd.distillation.teachers import read_teachers
from dit_shd.tasks import Batch, Output, Task


@torch.no_grad()
def guided_outputs(
    task: Task[Any], teacher: nn.Module, batch: Batch, losses: Mapping[str, Loss], conditional: Output
) -> dict[str, Output]:
    """The guided outputs that losses read, so that a student needs one call a step (arXiv 2210.03142, first stage).

    The teacher runs once more, without the condition, for all of them.

    Args:
        task: What is learned.
        teacher: On the batch's device.
        batch: One pass.
        losses: The losses, by name.
        conditional: The teacher's output on the batch.

    Returns:
        The output of every loss that has guidance, by the loss's name.

    Raises:
        UserError: The task has no condition.
    """
    wanted = _guided(losses)
    if not wanted:
        return {}
    unconditional = task.predict(teacher, task.unconditional(batch))
    return {name: task.guided(conditional, unconditional, batch, guidance) for name, guidance in wanted.items()}


def guided_teachers(losses: Mapping[str, Loss], names: Mapping[str, object]) -> list[str]:
    """The names of the teachers that run a second time in a pass, without repetition.

    Args:
        losses: The losses of the pass, by name.
        names: The teachers that exist, by name.

    Raises:
        UserError: A loss names a teacher that does not exist.
    """
    return read_teachers({name: losses[name] for name in _guided(losses)}, names)


def _guided(losses: Mapping[str, Loss]) -> dict[str, Guidance]:
    """The guidance of the losses that have one other than 1."""
    guidances = {name: loss.guidance for name, loss in losses.items() if loss.guidance is not None}
    return {name: guidance for name, guidance in guidances.items() if not guidance.changes_nothing}
