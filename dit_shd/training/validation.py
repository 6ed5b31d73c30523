"""Evaluations of the averaged weights while a model trains, on a schedule."""

from collections.abc import Callable
from typing import Any

from torch import nn

from dit_shd.core.distributed import run_on_main
from dit_shd.tasks import Task
from dit_shd.training.run_folder import RunFolder

LOG = "evaluations.jsonl"


class Validation:
    """Has a task evaluate the student at the steps that are due; every process calls it.

    What a kill interrupted is done again when the run comes by that step; what is finished is not.

    Args:
        every: steps between evaluations; 0 for none. student: makes one with the averaged weights.
    """

    def __init__(self, task: Task[Any], every: int, folder: RunFolder, student: Callable[[], nn.Module]):
        self.task, self.every, self.folder, self.student = task, every, folder, student

    def due(self, step: int) -> bool:
        """Whether a step is one to evaluate after."""
        return bool(self.every) and step > 0 and step % self.every == 0

    def missing(self, step: int) -> bool:
        """Whether an evaluation that was due has not been finished."""

        def unfinished() -> bool:
            logged = any(row["step"] == step for row in self.folder.rows(LOG))
            return not self.task.evaluated(self.folder.path, step, logged)

        return self.due(step) and run_on_main(unfinished)

    def run(self, step: int) -> dict[str, float] | None:
        """Evaluate; the figures, in the main process, where there are any."""
        figures = self.task.evaluate(self.student(), self.folder.path, step)
        if figures is not None:
            self.folder.log(LOG, {"step": step, **figures})
        return figures
