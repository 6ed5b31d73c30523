"""The training loop: a generator of steps, so that the caller decides what to show.

for step in train(config):
    print(step.number, step.metrics["loss"])
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dit_shd import calibration, checks, guard, models, optim
from dit_shd.averages import Averages
from dit_shd.batch import BatchSource
from dit_shd.checkpoint import RunFolder
from dit_shd.diffusion import Schedule
from dit_shd.distiller import Distiller
from dit_shd.errors import UserError
from dit_shd.guard import Guard
from dit_shd.losses import Loss
from dit_shd.run_state import RunState
from dit_shd.stop import Stop
from dit_shd.together import on_main
from dit_shd.train_config import TrainConfig, resolved

__all__ = ["Step", "TrainConfig", "Trainer", "resolved", "train"]


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
        from accelerate import Accelerator
        from accelerate.utils import DistributedDataParallelKwargs

        checks.ranges(config)
        self.config = config = resolved(config)
        torch.manual_seed(config.seed)
        self.schedule = Schedule.linear(config.diffusion_steps)
        dataset = config.data.build("data", where="data")
        student = config.student.build("models", where="student")
        losses = [p.build("losses", where=f"losses.{i}") for i, p in enumerate(config.losses)]
        self.teacher = _teacher(config)
        checks.fit(config, dataset, student, self.teacher)
        self.source = BatchSource(
            dataset=dataset,
            schedule=self.schedule,
            seed=config.seed,
            batch_size=config.batch_size,
            label_dropout=config.label_dropout,
            mask_ratio=config.mask_ratio,
            tokens=getattr(student, "tokens", None),
        )
        distiller = Distiller(student, losses, self.schedule, config.min_snr_gamma)
        self._try_out(distiller)

        optimizer = optim.build(config.optimizer, distiller.parameters())
        unused = DistributedDataParallelKwargs(find_unused_parameters=config.mask_ratio is None)
        self.accelerator = Accelerator(
            mixed_precision=config.precision,
            cpu=not torch.accelerator.is_available(),
            log_with=config.tracker,
            project_dir=config.run,
            kwargs_handlers=[unused],
        )
        self.micro_batch_size = checks.micro_batch_size(config, self.accelerator.num_processes)
        self.folder = RunFolder(config.run)
        on_main(self._open_folder)
        if config.tracker:
            self.accelerator.init_trackers("dit_shd")
        self.distiller, self.optimizer = self.accelerator.prepare(distiller, optimizer)
        if self.teacher is not None:
            self.teacher.to(self.accelerator.device)
        calibration.settle(distiller, self.teacher, self._first_batches(losses), self.folder, self.accelerator)
        self.averages = Averages(self.student, config.ema_rates).to(self.accelerator.device)
        self.state = RunState(
            self.accelerator.unwrap_model(self.distiller), self.optimizer, self.averages, self.accelerator.scaler
        )
        self.guard = Guard(config.run, self.accelerator, config.skip_bad_steps)
        self.stop = Stop()
        """Ask it to stop, and the loop ends after the step, saved; the command line lets signals ask."""
        self.first_step = self._saved_step = self._resume()

    @property
    def student(self) -> nn.Module:
        return self.accelerator.unwrap_model(self.distiller).student

    def run_steps(self) -> Iterator[Step]:
        """The loop."""
        try:
            for number in range(self.first_step, self.config.steps):
                yield self._step(number)
                if self.stop.due:
                    break
            self.accelerator.end_training()
        finally:
            self.folder.release()

    def _step(self, number: int) -> Step:
        config, start = self.config, time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = optim.learning_rate(config.optimizer, number, config.steps)
        metrics = self.accumulate(number)
        metrics["grad_norm"] = self._clip()
        if self.guard.finite(metrics["loss"], metrics["grad_norm"]):
            self.optimizer.step()
            self.averages.step(self.student)
        elif (error := self.guard.leaves_out(self, number)) is not None:
            self._save(number)
            raise error
        else:
            metrics = {}
        self.optimizer.zero_grad()

        done = number + 1
        last = done == config.steps or self.stop.agreed()
        logged = done % config.log_every == 0 or done == config.steps
        numbers = self._log(done, metrics, time.perf_counter() - start) if logged else {}
        if done % config.checkpoint_every == 0 or last:
            self._save(done)
        self._draw_samples(done)
        return Step(done, numbers)

    def shares(self) -> list[range]:
        """The positions of this process's micro batches in the global batch."""
        processes = self.accelerator.num_processes
        return self.source.shares(self.micro_batch_size, self.accelerator.process_index, processes)

    def accumulate(self, number: int) -> dict[str, Tensor]:
        """Gradients of one global batch: micro batch by micro batch and pass by pass; returns this process's means."""
        sums: dict[str, Tensor] = {}
        shares = self.shares()
        rounds = len(shares)
        for share in shares:
            batches = self.source.draw(number, share)
            for name, batch in batches.items():
                last = share == shares[-1] and name == self.source.passes[-1]
                with nullcontext() if last else self.accelerator.no_sync(self.distiller):
                    with self.accelerator.autocast():
                        loss, logs = self.distiller(batch.to(self.accelerator.device), name, self.teacher)
                    self.accelerator.backward(loss / rounds)
                for key, value in {"loss": loss.detach(), **logs}.items():
                    key = key if key == "loss" else f"{name}/{key}"
                    sums[key] = sums.get(key, 0) + value.float() / rounds
        return sums

    def _clip(self) -> Tensor:
        limit = self.config.optimizer.clip or float("inf")
        return torch.as_tensor(self.accelerator.clip_grad_norm_(self.distiller.parameters(), limit))

    def _log(self, done: int, metrics: dict[str, Tensor], seconds: float) -> dict[str, float]:
        names = list(metrics)
        means: Any = torch.zeros(0)
        if names:  # not of a step that was left out
            stacked = torch.stack([metrics[n].float().to(self.accelerator.device) for n in names])
            means = self.accelerator.reduce(stacked, "mean")
        numbers = {"step": done, **dict(zip(names, means.tolist()))}
        numbers["lr"] = self.optimizer.param_groups[0]["lr"]
        if self.guard.skipped:
            numbers["skipped_steps"] = self.guard.skipped
        if self.accelerator.is_main_process:
            self.folder.log("metrics.jsonl", numbers)
            self.folder.log("timing.jsonl", {"step": done, "seconds": round(seconds, 4)})
        if self.config.tracker:
            self.accelerator.log({k: v for k, v in numbers.items() if k != "step"}, step=done)
        return numbers

    def _save(self, done: int) -> None:
        if done == self._saved_step:
            return
        state, keep = self.state, (self.config.keep_checkpoints, self.config.keep_every)
        numbers = {**state.numbers(), "skipped_steps": self.guard.skipped}
        tensors, optimizer = state.tensors(), self.optimizer.state_dict()
        on_main(lambda: self.folder.save(done, tensors, optimizer, numbers, *keep))
        self._saved_step = done
        self._export(done)

    def _export(self, done: int) -> None:
        """The students of a checkpoint, where they are not there yet: a kill may have come between."""

        def write() -> None:
            for rate in self.averages.rates:
                folder = self.folder.student_of(rate, self.config)
                if models.exported_step(folder) != done:
                    models.export(self._averaged(rate), folder, self.config, done)

        on_main(write)

    def _open_folder(self) -> None:
        self.folder = RunFolder.open(self.config.run, self.config)

    def _resume(self) -> int:
        name = on_main(self.folder.pick)
        saved = None if name is None else self.folder.load(name)
        step = 0 if saved is None else saved["step"]
        on_main(lambda: self.folder.forget_after(step))
        if saved is None:
            return 0
        try:
            self.state.restore(saved, self.accelerator.device)
            self.guard.skipped = int(saved["skipped_steps"])
        except (AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:150]
            raise UserError(f"{self.folder.path}: {name} does not fit this run ({reason})") from error
        self._saved_step = step
        self._export(step)
        self._draw_samples(step, again=False)
        return step

    def _averaged(self, rate: float | None = None) -> nn.Module:
        """A copy of the student with averaged weights."""
        copy = self.config.student.build("models", where="student")
        copy.load_state_dict({k: v.cpu() for k, v in self.averages.tensors(rate).items()}, strict=False)
        return copy.eval()

    def _draw_samples(self, done: int, again: bool = True) -> None:
        """The grid of a step that is due; one that is there is drawn again, or left alone."""
        from dit_shd.sampler import draw_grid

        every, path = self.config.sample_every, self.folder.path / "samples" / f"step_{done:08d}.png"
        if not every or done % every:
            return
        if self.accelerator.is_main_process and (again or not path.exists()):
            model = self._averaged().to(self.accelerator.device)
            steps = min(50, len(self.schedule))
            options = {"steps": steps, "seed": self.config.seed, "diffusion_steps": len(self.schedule)}
            draw_grid(model, path, count=10, labels="balanced", **options)
        self.accelerator.wait_for_everyone()

    def _first_batches(self, losses: Sequence[Loss]) -> Iterator[calibration.Passes]:
        """As many batches as the losses want to calibrate on, one micro batch of each of the first steps."""
        for number in range(max((loss.calibration for loss in losses), default=0)):
            yield self.source.draw(number, range(self.micro_batch_size))

    def _try_out(self, distiller: Distiller) -> None:
        """One forward on one sample before anything is written: what does not fit together is said here."""
        if self.teacher is None:
            return
        sample = self.source.draw(0, range(1))
        calibration.look(distiller, self.teacher, [sample])
        bad = guard.look(distiller, self.teacher, sample)
        if bad is not None:
            raise UserError(f"the first sample: teacher and student give NaN or infinity, first in {bad}")


def _teacher(config: TrainConfig) -> nn.Module | None:
    if config.losses and config.teacher is None:
        raise UserError("teacher: losses need a teacher, and none was given (losses: [] is plain training)")
    if config.teacher is None:
        return None
    teacher = models.load(config.teacher).eval().requires_grad_(False)
    return teacher.bfloat16() if config.teacher_precision == "bf16" else teacher
