"""Evaluations of the averaged weights while a model trains, on a schedule."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from dit_shd.core.config import resolve
from dit_shd.core.distributed import run_on_main
from dit_shd.core.run_files import EVALUATIONS, RUN_CONFIG
from dit_shd.core.yaml_files import read_yaml
from dit_shd.profiling.throughput import Throughput
from dit_shd.tasks import Task
from dit_shd.training.config import TrainConfig, completed
from dit_shd.training.run_folder import RunFolder
from dit_shd.training.step import Step
from dit_shd.training.tracker import Tracker

NEUTRAL = ("batch_size", "keep")
"""Keys of evaluations that change no figure."""


@dataclass(frozen=True)
class Validation:
    """The service by which a task evaluates the student at the steps that are due.

    What a kill interrupted is done again when the run comes by that step; what is finished is not.
    """

    task: Task[Any]
    folder: RunFolder
    tracker: Tracker
    throughput: Throughput
    students: Mapping[str, Callable[[], nn.Module]]
    """Each makes a student with averaged weights; by what is added to the names of its figures."""
    every: int
    """Steps between evaluations; 0 for none."""

    def after(self, step: Step) -> None:
        if self.due(step.number) and not step.stopping:  # whoever stops it cannot wait; it is done on resumption
            self.run(step.number)
            self.throughput.pause()

    def due(self, number: int) -> bool:
        """Whether a step is one to evaluate after."""
        return bool(self.every) and number > 0 and number % self.every == 0

    def missing(self, number: int) -> bool:
        """Whether an evaluation that was due has not been finished."""

        def unfinished() -> bool:
            logged = any(row["step"] == number for row in self.folder.rows(EVALUATIONS))
            return not self.task.evaluated(self.folder.path, number, logged)

        return self.due(number) and run_on_main(unfinished)

    def run(self, number: int) -> None:
        """Evaluate after a step, and log the figures that there are."""
        figures: dict[str, float] = {}
        for suffix, student in self.students.items():
            evaluated = self.task.evaluate(student(), self.folder.path, number)
            figures |= {f"{name}{suffix}": value for name, value in (evaluated or {}).items()}
        if figures:
            self.folder.log(EVALUATIONS, {"step": number, **figures})
            self.tracker.log("evaluation", {f"evaluation/{k}": v for k, v in figures.items()}, number)
        self.tracker.accelerator.wait_for_everyone()


def incomparable(config: TrainConfig) -> str | None:
    """A warning of a run that goes on with another evaluation than that of its figures; None elsewhere."""
    rows = RunFolder(config.run).rows(EVALUATIONS)
    if not rows:
        return None
    before, now = (
        values["task"].get("evaluation") for values in (completed(read_yaml(config.run / RUN_CONFIG)), resolve(config))
    )
    changed = [key for key in now or {} if key not in NEUTRAL and (before or {}).get(key) != now[key]]
    if not changed or not config.validate_every:
        return None
    return (
        f"task.evaluation: {', '.join(changed)} changed: figures up to step {rows[-1]['step']} are of another "
        "evaluation than those to come, and not comparable"
    )
