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

from dit_shd import calibration, checks, initialisation, models, optim
from dit_shd.averages import Averages
from dit_shd.batch import BatchSource
from dit_shd.checkpoint import RunFolder
from dit_shd.diffusion import Schedule
from dit_shd.distiller import Distiller
from dit_shd.errors import UserError
from dit_shd.losses import Loss
from dit_shd.run_state import RunState
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
        with self.accelerator.main_process_first():
            self.folder = RunFolder.open(config.run, config, write=self.accelerator.is_main_process)
        if config.tracker:
            self.accelerator.init_trackers("dit_shd")
        first = self._first_batches(losses)
        initialisation.settle(config, distiller, self.teacher, self.source, first, self.folder, self.accelerator)
        self.distiller, self.optimizer = self.accelerator.prepare(distiller, optimizer)
        if self.teacher is not None:
            self.teacher.to(self.accelerator.device)
        calibration.settle(distiller, self.teacher, self._first_batches(losses), self.folder, self.accelerator)
        self.averages = Averages(self.student, config.ema_rates).to(self.accelerator.device)
        self.state = RunState(
            self.accelerator.unwrap_model(self.distiller), self.optimizer, self.averages, self.accelerator.scaler
        )
        self.first_step = self._saved_step = self._resume()

    @property
    def student(self) -> nn.Module:
        return self.accelerator.unwrap_model(self.distiller).student

    def run_steps(self) -> Iterator[Step]:
        """The loop."""
        config = self.config
        for number in range(self.first_step, config.steps):
            start = time.perf_counter()
            for group in self.optimizer.param_groups:
                group["lr"] = optim.learning_rate(config.optimizer, number, config.steps)
            metrics = self._accumulate(number)
            metrics["grad_norm"] = self._clip(number)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.averages.step(self.student)

            done = number + 1
            logged = done % config.log_every == 0 or done == config.steps
            numbers = self._log(done, metrics, time.perf_counter() - start) if logged else {}
            if done % config.checkpoint_every == 0 or done == config.steps:
                self._save(done)
            if config.sample_every and done % config.sample_every == 0:
                self._draw_samples(done)
            yield Step(done, numbers)
        self.accelerator.end_training()

    def _accumulate(self, number: int) -> dict[str, Tensor]:
        """Gradients of one global batch: micro batch by micro batch and pass by pass; returns this process's means."""
        size, processes = self.micro_batch_size, self.accelerator.num_processes
        rounds = self.config.batch_size // (size * processes)
        sums: dict[str, Tensor] = {}
        for i in range(rounds):
            first = (i * processes + self.accelerator.process_index) * size
            batches = self.source.draw(number, range(first, first + size))
            for name, batch in batches.items():
                last = i == rounds - 1 and name == self.source.passes[-1]
                with nullcontext() if last else self.accelerator.no_sync(self.distiller):
                    with self.accelerator.autocast():
                        loss, logs = self.distiller(batch.to(self.accelerator.device), name, self.teacher)
                    self.accelerator.backward(loss / rounds)
                for key, value in {"loss": loss.detach(), **logs}.items():
                    key = key if key == "loss" else f"{name}/{key}"
                    sums[key] = sums.get(key, 0) + value.float() / rounds
        return sums

    def _clip(self, number: int) -> Tensor:
        limit = self.config.optimizer.clip or float("inf")
        norm = torch.as_tensor(self.accelerator.clip_grad_norm_(self.distiller.parameters(), limit))
        if self.config.precision != "fp16" and not torch.isfinite(norm):  # fp16: the scaler skips such steps
            raise UserError(
                f"step {number + 1}: the gradient is not finite (NaN or infinity); nothing was saved after step "
                f"{self._saved_step}. A lower optimizer.lr or precision=no may help"
            )
        return norm

    def _log(self, done: int, metrics: dict[str, Tensor], seconds: float) -> dict[str, float]:
        names = list(metrics)
        stacked = torch.stack([metrics[n].float().to(self.accelerator.device) for n in names])
        means: Any = self.accelerator.reduce(stacked, "mean")
        numbers = {"step": done, **dict(zip(names, means.tolist()))}
        numbers["lr"] = self.optimizer.param_groups[0]["lr"]
        if self.accelerator.is_main_process:
            self.folder.log("metrics.jsonl", numbers)
            self.folder.log("timing.jsonl", {"step": done, "seconds": round(seconds, 4)})
        if self.config.tracker:
            self.accelerator.log({k: v for k, v in numbers.items() if k != "step"}, step=done)
        return numbers

    def _save(self, done: int) -> None:
        if self.accelerator.is_main_process:
            for rate in self.averages.rates:
                models.export(self._averaged(rate), self.folder.student_of(rate, self.config), self.config, done)
            state, keep = self.state, self.config.keep_checkpoints
            self.folder.save(done, state.tensors(), self.optimizer.state_dict(), state.numbers(), keep)
        self._saved_step = done
        self.accelerator.wait_for_everyone()

    def _resume(self) -> int:
        saved = self.folder.load()
        if self.accelerator.is_main_process:
            self.folder.forget_after(0 if saved is None else saved["step"])
        if saved is None:
            return 0
        try:
            self.state.restore(saved, self.accelerator.device)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:150]
            raise UserError(f"{self.folder.newest}: does not fit this run ({reason})") from error
        return saved["step"]

    def _averaged(self, rate: float | None = None) -> nn.Module:
        """A copy of the student with averaged weights."""
        copy = self.config.student.build("models", where="student")
        copy.load_state_dict({k: v.cpu() for k, v in self.averages.tensors(rate).items()}, strict=False)
        return copy.eval()

    def _draw_samples(self, done: int) -> None:
        from dit_shd.sampler import draw_grid

        if self.accelerator.is_main_process:
            model = self._averaged().to(self.accelerator.device)
            path = self.folder.path / "samples" / f"step_{done:08d}.png"
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
        with torch.no_grad():
            for name, batch in sample.items():
                distiller(batch, name, self.teacher)


def _teacher(config: TrainConfig) -> nn.Module | None:
    if config.losses and config.teacher is None:
        raise UserError("teacher: losses need a teacher, and none was given (losses: [] is plain training)")
    if config.teacher is None:
        return None
    teacher = models.load(config.teacher).eval().requires_grad_(False)
    return teacher.bfloat16() if config.teacher_precision == "bf16" else teacher
