"""What a run does beside its steps: its log, its checkpoints and its validation, in this order."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from dit_shd.core.dtensor import gather_tree
from dit_shd.profiling.throughput import Throughput
from dit_shd.tasks import Task
from dit_shd.training.checkpointer import Checkpointer, averaged
from dit_shd.training.config import TrainConfig
from dit_shd.training.log_book import LogBook
from dit_shd.training.nan_guard import Guard
from dit_shd.training.run_folder import RunFolder
from dit_shd.training.state import TrainState
from dit_shd.training.step import Service
from dit_shd.training.tracker import Tracker
from dit_shd.training.validation import Validation


@dataclass(frozen=True)
class Services:
    """The services of a run, and the guard whose count of bad steps the first two write down."""

    log_book: LogBook
    checkpointer: Checkpointer
    validation: Validation
    guard: Guard

    @classmethod
    def of(
        cls,
        config: TrainConfig,
        task: Task[Any],
        state: TrainState,
        folder: RunFolder,
        tracker: Tracker,
        throughput: Throughput,
    ) -> "Services":
        """The services that a config asks for."""
        accelerator, rates = tracker.accelerator, config.ema_rates if task.evaluates_averages else config.ema_rates[:1]
        suffixes = [folder.student_of(rate, config.ema_rates).name.removeprefix("student") for rate in rates]
        students = {suffix: partial(_student, config, task, state, rate) for suffix, rate in zip(suffixes, rates)}
        guard = Guard(config.run, accelerator, config.skip_bad_steps)
        every, norms_every = config.log_every, config.gradient_norms_every
        return cls(
            LogBook(folder, tracker, throughput, guard, state.optimizer, every, norms_every, config.steps),
            Checkpointer(config, task, folder, state, guard, throughput, accelerator),
            Validation(task, folder, tracker, throughput, students, config.validate_every),
            guard,
        )

    def __iter__(self) -> Iterator[Service]:
        """In the order in which they follow a step."""
        return iter((self.log_book, self.checkpointer, self.validation))

    def resume(self) -> int:
        """Take up the newest sound checkpoint, and evaluate it if a kill came before that.

        Returns:
            The step to go on with, from 0.
        """
        first_step = self.checkpointer.resume()
        if self.validation.missing(first_step):
            self.validation.run(first_step)
        self.log_book.throughput.pause()
        return first_step


def _student(config: TrainConfig, task: Task[Any], state: TrainState, rate: float) -> nn.Module:
    """A student with the weights of one average; where they are in slices, every process has to ask."""
    return averaged(config, task, gather_tree(state.averages.tensors(rate)))
