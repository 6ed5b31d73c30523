"""The training loop: a generator of steps, so that the caller decides what to show.

for step in train(config):
    print(step.number, step.metrics["loss"])
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dit_shd.core import dtensor
from dit_shd.core.config import checked
from dit_shd.core.distributed import run_on_main
from dit_shd.core.dtensor import gather_tree
from dit_shd.core.errors import UserError
from dit_shd.core.prefetch import prefetch
from dit_shd.core.rng import Draws
from dit_shd.core.signals import StopRequest
from dit_shd.core.yaml_files import dump
from dit_shd.data.datasets import DATASETS
from dit_shd.data.latent_origin import before_training
from dit_shd.distillation import calibration
from dit_shd.distillation.distiller import Distiller
from dit_shd.distillation.losses import LOSSES
from dit_shd.models.families import FAMILIES
from dit_shd.profiling.flops import step_operations
from dit_shd.profiling.hardware import known_peak
from dit_shd.profiling.throughput import Throughput
from dit_shd.tasks import TASKS, Batch
from dit_shd.training import checks, fsdp, nan_guard, optim, setup
from dit_shd.training.checkpointer import Checkpointer, averaged
from dit_shd.training.compilation import compile_blocks
from dit_shd.training.config import TrainConfig, completed, may_change, resolved, sized
from dit_shd.training.dry_run import step_shape
from dit_shd.training.ema import EMA, too_slow
from dit_shd.training.gradient_norms import gradient_norms
from dit_shd.training.nan_guard import Diagnosis, Guard
from dit_shd.training.run_folder import RunFolder
from dit_shd.training.state import TrainState
from dit_shd.training.teacher_check import check_teachers
from dit_shd.training.tracker import Tracker
from dit_shd.training.validation import Validation

_log = logging.getLogger("dit_shd")
CALIBRATION_IMAGES = 32
"""Of each of the first steps, that losses calibrate on."""


@dataclass(frozen=True)
class Step:
    """One finished optimizer step."""

    number: int
    """Counts from 1."""
    metrics: dict[str, float]
    """Empty on steps that are not logged."""


def train(config: TrainConfig) -> Iterator[Step]:
    """Train, yielding after every optimizer step; resumes from the run folder's newest checkpoint.

    Raises:
        UserError: a config that cannot work; nothing has been written then.
    """
    return Trainer(config).run_steps()


class Trainer:
    """Everything one run holds; see run_steps for the loop."""

    def __init__(self, config: TrainConfig):
        config = checked(config, "train")
        checks.ranges(config)
        self.config = config = resolved(config)
        torch.manual_seed(config.seed)
        self.task = task = TASKS.build(config.task, "task")
        dataset = DATASETS.build(config.data, "data")
        self.config = config = sized(config, {"num_classes": dataset.classes, **task.student_options()})
        student = FAMILIES.build(config.student, "student")
        losses = [LOSSES.build(p, f"losses.{i}") for i, p in enumerate(config.losses)]
        checks.teaching(config, losses)
        self.teachers = setup.load_teachers(config)
        task.use(dataset, student)
        kept = before_training(config.vae, dataset.origin, dataset.shape[0], config.run)
        checks.fit(config, task, losses, student, self.teachers, kept)
        distiller = Distiller(task, student, losses, not config.compile and config.sharding == "no")
        self._try_out(distiller)
        self.accelerator = accelerator = setup.accelerator_of(config, task)
        self.micro_batch_size = checks.micro_batch_size(config, accelerator.num_processes)
        slow = too_slow(config.ema_rates, config.steps, config.ema_warmup)
        if slow and accelerator.is_main_process:
            _log.warning(slow)
        for line in task.remarks(student) if accelerator.is_main_process else ():
            _log.warning("%s", line)
        check_teachers(config, task, self.teachers, accelerator)
        self.folder = RunFolder.open(config.run, dump(config), may_change(task), completed)
        run_on_main(lambda: kept.write(config.run))
        self.decodes = kept.origin is None or kept.autoencoder is not None
        """Whether sampling from the run gives images by itself."""
        self.tracker = Tracker(config, self.folder, accelerator)
        self._place(distiller)
        self.averages = EMA(self.student, config.ema_rates, config.ema_warmup)
        self.state = TrainState(
            accelerator.unwrap_model(self.distiller), self.optimizer, self.averages, accelerator.scaler
        )
        self.validation = Validation(task, config.validate_every, self.folder, self._averaged)
        self.guard = Guard(config.run, accelerator, config.skip_bad_steps)
        self.stop = StopRequest()
        """Ask it, and the loop ends after its step, saved; the command line lets signals ask."""
        self.saver = Checkpointer(config, self.folder, self.state, self.guard, accelerator, task)
        self.first_step = self.saver.resume()
        if self.validation.missing(self.first_step):
            self._evaluate(self.first_step)  # a kill came before it

    def _place(self, distiller: Distiller) -> None:
        """Onto the devices, whole or in slices, and ready to be fast."""
        config, device = self.config, self.accelerator.device
        first = self._first_batches(distiller)
        setup.load_or_initialise(config, distiller, self.teachers, first, self.folder, self.accelerator)
        if config.gradient_checkpointing:
            distiller.student.enable_gradient_checkpointing()  # type: ignore[operator]
        if config.compile:
            compile_blocks(distiller.student, *self.teachers.values())
        sharded = config.sharding == "fsdp2"
        distiller.to(device)
        for teacher in self.teachers.values():
            teacher.to(device)
            if sharded:
                fsdp.shard(teacher, teacher, device, frozen=True)
        setup.load_or_calibrate(distiller, self.teachers, self._first_batches(distiller), self.folder, self.accelerator)
        if sharded:
            fsdp.shard(distiller, distiller.student, device, frozen=False)
            self.distiller: nn.Module = distiller
            self.optimizer = self.accelerator.prepare(optim.build(config.optimizer, distiller.parameters()))
        else:
            optimizer = optim.build(config.optimizer, distiller.parameters())
            self.distiller, self.optimizer = self.accelerator.prepare(distiller, optimizer)

    @property
    def student(self) -> nn.Module:
        return self.accelerator.unwrap_model(self.distiller).student

    def run_steps(self) -> Iterator[Step]:
        """The loop, which lets others at the folder when it ends."""
        try:
            yield from self._steps()
        finally:
            self.folder.release()

    def _steps(self) -> Iterator[Step]:
        config = self.config
        batches, meter = prefetch(self.draw, self._plan()), self._meter()
        for number in range(self.first_step, config.steps):
            done = number + 1
            for group in self.optimizer.param_groups:
                group["lr"] = optim.learning_rate(config.optimizer, number, config.steps)
            metrics = self.accumulate(batches)
            norms = bool(config.gradient_norms_every) and done % config.gradient_norms_every == 0
            if norms:
                metrics |= self._gradient_norms(number)
            metrics["grad_norm"] = self._clip()
            if not self._apply(number, metrics):
                metrics = {}
            meter.step()

            logged = norms or done % config.log_every == 0 or done == config.steps
            numbers = self._log(done, metrics, meter) if logged else {}
            if self.stop.agreed() or done % config.checkpoint_every == 0 or done == config.steps:
                self.saver.save(done)
                meter.pause()
            if (
                self.validation.due(done) and not self.stop.due
            ):  # whoever stops it cannot wait; it is done on resumption
                self._evaluate(done)
                meter.pause()
            yield Step(done, numbers)
            if self.stop.due:
                break
        self.accelerator.end_training()

    def _plan(self) -> Iterator[tuple[int, int]]:
        """This process's micro batches to come: their step, and their first place in its global batch."""
        for number in range(self.first_step, self.config.steps):
            yield from self.places(number)

    def places(self, number: int) -> Iterator[tuple[int, int]]:
        """Those of one step."""
        size, processes = self.micro_batch_size, self.accelerator.num_processes
        for i in range(self.config.batch_size // (size * processes)):
            yield number, (i * processes + self.accelerator.process_index) * size

    def draw(self, place: tuple[int, int]) -> Sequence[Batch]:
        number, first = place
        return self._draw(number, range(first, first + self.micro_batch_size))

    def _draw(self, number: int, positions: Sequence[int]) -> Sequence[Batch]:
        return self.task.draw(Draws(self.config.seed, number, positions, self.config.batch_size))

    def accumulate(self, batches: Iterator[Sequence[Batch]]) -> dict[str, Tensor]:
        """Gradients of one global batch: micro batch by micro batch and pass by pass; returns this process's means."""
        rounds = self.config.batch_size // (self.micro_batch_size * self.accelerator.num_processes)
        sums: dict[str, Tensor] = {}
        for i in range(rounds):
            for batch in next(batches):
                name = batch.pass_name
                last = i == rounds - 1 and name == self.task.passes[-1]
                with fsdp.synchronised(self.distiller, self.accelerator, last):
                    with self.accelerator.autocast():
                        loss, logs = self.distiller(batch.to(self.accelerator.device), self.teachers)
                    self.accelerator.backward(loss / rounds)
                for key, value in {"loss": loss.detach(), **logs}.items():
                    key = key if key == "loss" else f"{name}/{key}"
                    sums[key] = sums.get(key, 0) + value.float() / rounds
        return sums

    def _gradient_norms(self, number: int) -> dict[str, Tensor]:
        """By pass and term, of this process's first micro batch of a step."""
        distiller, norms = self.accelerator.unwrap_model(self.distiller), {}
        batches = self.draw((number, self.accelerator.process_index * self.micro_batch_size))
        for batch in batches:
            with self.accelerator.autocast():
                found = gradient_norms(distiller, batch.to(self.accelerator.device), self.teachers)
            norms |= {f"grad_norm/{term}": norm for term, norm in found.items()}
        return norms

    def _clip(self) -> Tensor:
        limit = self.config.optimizer.clip or float("inf")
        return dtensor.full_tensor(
            torch.as_tensor(self.accelerator.clip_grad_norm_(self.distiller.parameters(), limit))
        )

    def _apply(self, number: int, metrics: dict[str, Tensor]) -> bool:
        """Let the gradient reach the weights, if it is finite; whether it did."""
        good = self.guard.finite(metrics["loss"], metrics["grad_norm"])
        if good:
            self.optimizer.step()
            self.averages.step(self.student, number)
        elif (error := self._leave_out(number)) is not None:
            self.saver.save(number)
            raise error
        self.optimizer.zero_grad()
        return good

    def _leave_out(self, number: int) -> UserError | None:
        """Keep the batch of a bad step and what it was; the error, where no more may be left out."""
        finding = self.diagnose(number)
        return self.guard.skip(number, finding, lambda: self._draw(number, range(self.config.batch_size)))

    def diagnose(self, number: int) -> Diagnosis:
        """Do step `number` (counted from 0) again and see what is not finite, in whichever process."""
        self.optimizer.zero_grad()
        metrics = self.accumulate(map(self.draw, self.places(number)))
        distiller = self.accelerator.unwrap_model(self.distiller)
        return nan_guard.diagnose(
            distiller, self.teachers, map(self.draw, self.places(number)), metrics, self.accelerator
        )

    def _log(self, done: int, metrics: dict[str, Tensor], meter: Throughput) -> dict[str, float]:
        names = list(metrics)
        means: Any = torch.zeros(0)
        if names:  # not of a step that was left out
            stacked = torch.stack([metrics[n].float().to(self.accelerator.device) for n in names])
            means = self.accelerator.reduce(stacked, "mean")
        numbers: dict[str, float] = {"step": done, **dict(zip(names, means.tolist()))}
        numbers["lr"] = self.optimizer.param_groups[0]["lr"]
        if self.guard.skipped:
            numbers["skipped_steps"] = self.guard.skipped
        if self.accelerator.is_main_process:
            self.folder.log("metrics.jsonl", numbers)
            self.folder.log("timing.jsonl", {"step": done, **meter.row()})
        self.tracker.log("training", {k: v for k, v in numbers.items() if k != "step"}, done)
        return numbers

    def _meter(self) -> Throughput:
        device = self.accelerator.device
        peak = self.config.peak_tflops or known_peak(device)
        total = None if peak is None else peak * self.accelerator.num_processes
        student = self.state.distiller.student
        step = step_shape(self.config, self.micro_batch_size)
        operations = step_operations(step, student, self.teachers).total
        return Throughput(self.config.batch_size, operations, total, device)

    def _evaluate(self, done: int) -> None:
        """Evaluate the averaged student."""
        figures = self.validation.run(done)
        if figures is not None:
            self.tracker.log("evaluation", {f"evaluation/{k}": v for k, v in figures.items()}, done)
        self.accelerator.wait_for_everyone()

    def _averaged(self) -> nn.Module:
        return averaged(self.config, self.task, gather_tree(self.averages.tensors()))

    def _first_batches(self, distiller: Distiller) -> Iterator[Sequence[Batch]]:
        """As many batches as the losses want to calibrate on: the same, whatever a step is divided into."""
        for number in range(max((loss.calibration for _, loss in distiller.named_losses()), default=0)):
            yield self._draw(number, range(min(CALIBRATION_IMAGES, self.config.batch_size)))

    def _try_out(self, distiller: Distiller) -> None:
        """One forward on one sample before anything is written: what does not fit together is said here."""
        if not self.teachers:
            return
        sample = self._draw(0, range(1))
        calibration.calibrate(distiller, self.teachers, [sample])
        bad = nan_guard.first_non_finite(distiller, self.teachers, sample)
        if bad is not None:
            raise UserError(f"the first sample: teacher and student give NaN or infinity, first in {bad}")
