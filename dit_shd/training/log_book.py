"""The log of a run's steps: metrics.jsonl, timing.jsonl, and the tracker."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dit_shd.core.run_files import METRICS, TIMING
from dit_shd.profiling.throughput import Throughput
from dit_shd.training.nan_guard import Guard
from dit_shd.training.run_folder import RunFolder
from dit_shd.training.step import Step
from dit_shd.training.tracker import Tracker


@dataclass(frozen=True)
class LogBook:
    """The service that logs; the numbers of a logged step are put into its `metrics`."""

    folder: RunFolder
    tracker: Tracker
    throughput: Throughput
    guard: Guard
    optimizer: torch.optim.Optimizer
    every: int
    """Steps between rows."""
    norms_every: int
    """Steps between rows that hold gradient norms, too; 0 for none."""
    last: int
    """The run's last step, which is always logged."""

    def after(self, step: Step) -> None:
        self.throughput.step()
        due = step.number % self.every == 0 or step.number == self.last
        if due or (self.norms_every and step.number % self.norms_every == 0):
            self._write(step)

    def _write(self, step: Step) -> None:
        step.metrics.update({"step": step.number, **self._means(step.terms)})
        step.metrics["lr"] = float(self.optimizer.param_groups[0]["lr"])
        if self.guard.skipped:
            step.metrics["skipped_steps"] = self.guard.skipped
        if self.tracker.accelerator.is_main_process:
            self.folder.log(METRICS, step.metrics)
            self.folder.log(TIMING, {"step": step.number, **self.throughput.row(step.number - 1)})
        self.tracker.log("training", {k: v for k, v in step.metrics.items() if k != "step"}, step.number)

    def _means(self, terms: dict[str, Tensor]) -> dict[str, float]:
        """The means of all processes."""
        if not terms:  # of a step that was left out
            return {}
        stacked = torch.stack([value.float().to(self.tracker.accelerator.device) for value in terms.values()])
        means: Any = self.tracker.accelerator.reduce(stacked, "mean")
        return dict(zip(terms, means.tolist()))
