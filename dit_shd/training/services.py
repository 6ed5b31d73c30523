"""The services of a run beside its steps: log, checkpoints and validation, in this order."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from accelerate import Accelerator
from torch import nn

from dit_shd.core.errors import UserError
from dit_shd.core.run_files import STUDENT
from dit_shd.distillation.teachers import Teachers
from dit_shd.profiling.flops import operations_by_step
from dit_shd.profiling.hardware import known_peak
from dit_shd.profiling.throughput import Throughput
from dit_shd.tasks import Task
from dit_shd.training.batches import Batches
from dit_shd.training.checkpointer import Checkpointer, averaged
from dit_shd.training.config import TrainConfig
from dit_shd.training.dry_run import step_shape
from dit_shd.training.log_book import LogBook
from dit_shd.training.nan_guard import Guard
from dit_shd.training.run_folder import RunFolder
from dit_shd.training.state import TrainState
from dit_shd.training.step import Service
from dit_shd.training.tracker import Tracker
from dit_shd.training.validation import Validation

_log = logging.getLogger("dit_shd")


@dataclass(frozen=True)
class Services:
    """The services of a run, and the guard, whose count of bad steps the first two write."""

    log_book: LogBook
    checkpointer: Checkpointer
    validation: Validation
    guard: Guard

    @classmethod
    def of(
        cls,
        config: TrainConfig,
        state: TrainState,
        teachers: Teachers,
        folder: RunFolder,
        tracker: Tracker,
        batches: Batches,
    ) -> "Services":
        """The services of a run.

        Args:
            config: The config of the run.
            state: What is saved and evaluated.
            teachers: Whose operations count, too.
            folder: The folder of the run.
            tracker: The tracker of the run.
            batches: The batches of this process.
        """
        accelerator, task = tracker.accelerator, batches.task
        rates = config.ema_rates if task.evaluates_averages else config.ema_rates[:1]
        suffixes = [folder.student_of(rate, config.ema_rates).name.removeprefix(STUDENT) for rate in rates]
        students = {suffix: partial(_student, config, task, state, rate) for suffix, rate in zip(suffixes, rates)}
        meter = throughput(config, state.distiller.student, teachers, batches.micro_size, accelerator)
        guard = Guard(folder.path, accelerator, config.skip_bad_steps)
        every, norms_every = config.log_every, config.gradient_norms_every
        return cls(
            LogBook(folder, tracker, meter, guard, state.optimizer, every, norms_every, config.steps),
            Checkpointer(config, task, folder, state, guard, meter, accelerator),
            Validation(task, folder, tracker, meter, students, config.validate_every),
            guard,
        )

    def __iter__(self) -> Iterator[Service]:
        """The services in the order in which they follow a step."""
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


def throughput(
    config: TrainConfig, student: nn.Module, teachers: Teachers, images: int, accelerator: Accelerator
) -> Throughput:
    """Counter of images and operations a second.

    Args:
        config: The config of the run.
        student: The student of the run.
        teachers: The teachers, by name.
        images: The number of images of one micro batch.
        accelerator: Whose devices' peak is known, or in the config.
    """
    peak = config.peak_tflops or known_peak(accelerator.device, config.precision)
    total = None if peak is None else peak * accelerator.num_processes
    try:
        step = step_shape(config, images)
        counted = operations_by_step(step, student, teachers, config.steps)
        operations = {first: each.total for first, each in counted.items()}
    except UserError as error:
        _log.info("operations and utilisation are not logged: %s", error)
        operations, total = None, None
    return Throughput(config.batch_size, operations, total, accelerator.device)


def _student(config: TrainConfig, task: Task[Any], state: TrainState, rate: float) -> nn.Module:
    """A student with the weights of one average; every process takes part, since they may be in slices."""
    return averaged(config, task, state.student(rate))
