"""The training loop: a generator of steps, so that the caller decides what to show.

for step in train(config):
    print(step.number, step.metrics["loss"])
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dit_shd import calibration, checks, models, optim
from dit_shd.batch import BatchSource
from dit_shd.checkpoint import RunFolder
from dit_shd.config import Plugin, option
from dit_shd.diffusion import Schedule
from dit_shd.distiller import Distiller
from dit_shd.errors import UserError
from dit_shd.losses import Loss
from dit_shd.optim import OptimizerConfig


@dataclass(frozen=True)
class TrainConfig:
    """A training run. `losses: []` is plain training; with losses a teacher is needed."""

    run: Path = option(Path("runs/train"), "the run folder; the same command again resumes it")
    data: Plugin = option(Plugin("digits"), "dataset: {name: digits | npz, ...}")
    student: Plugin = option(Plugin("mdt"), "model to train: {name: mdt, size: S/2, ...}")
    teacher: str | None = option(None, "run folder, diffusers folder, public checkpoint file, or asset:NAME")
    teacher_precision: Literal["no", "bf16"] = option("no", "hold and run the teacher in bfloat16; maps stay float32")
    losses: list[Plugin] = option([], "distillation terms: [{name: shd, weight: 2}, {name: output}]")
    seed: int = option(0, "every random draw is a function of it")
    steps: int = option(400_000, "optimizer steps in all; may be raised to go on")
    batch_size: int = option(256, "images of one optimizer step, over all processes")
    micro_batch_size: int | None = option(None, "images of one forward in one process; empty: batch_size / processes")
    optimizer: OptimizerConfig = option(OptimizerConfig(), "")
    ema: float = option(0.9999, "decay of the weight average that is sampled from")
    diffusion_steps: int = option(1000, "steps of the linear noise schedule")
    min_snr_gamma: float | None = option(5.0, "weight min(SNR, gamma)/SNR of the noise error; empty for none")
    label_dropout: float = option(0.1, "share of labels dropped, for guidance")
    mask_ratio: float | None = option(0.3, "masked pass: share from here to +0.2 hidden; empty for no masked pass")
    precision: Literal["no", "bf16", "fp16"] = option("no", "mixed precision")
    log_every: int = option(10, "steps between lines of metrics.jsonl")
    checkpoint_every: int = option(10_000, "steps between checkpoints (and exports of the student)")
    keep_checkpoints: int = option(2, "newest checkpoints kept")
    sample_every: int = option(0, "steps between sample grids; 0 for none")
    tracker: str | None = option(None, "an accelerate tracker by name: tensorboard, wandb, ...")


@dataclass(frozen=True)
class Step:
    """One finished optimizer step."""

    number: int
    """Counts from 1."""
    metrics: dict[str, float]
    """Empty on steps that are not logged."""


def resolved(config: TrainConfig) -> TrainConfig:
    """The config with the defaults of its data and losses written out (a model's are in its own config.json)."""
    losses = [p.filled("losses", f"losses.{i}") for i, p in enumerate(config.losses)]
    return replace(config, data=config.data.filled("data", "data"), losses=losses)


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
        from diffusers.training_utils import EMAModel

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
        self.distiller, self.optimizer = self.accelerator.prepare(distiller, optimizer)
        if self.teacher is not None:
            self.teacher.to(self.accelerator.device)
        calibration.settle(distiller, self.teacher, self._first_batches(losses), self.folder, self.accelerator)
        self.ema = EMAModel(
            self.student.parameters(), config.ema, min_decay=config.ema, update_after_step=-1, foreach=True
        )
        self.ema.to(self.accelerator.device)
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
            self.ema.step(self.student.parameters())

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
            distiller = self.accelerator.unwrap_model(self.distiller)
            scaler = self.accelerator.scaler
            tensors = {"distiller": distiller.state_dict(), "ema": self._ema_state()}
            extra = {} if scaler is None else {"scaler": scaler.state_dict()}
            models.export(self._averaged(), self.folder.student, self.config, done)
            self.folder.save(done, tensors, self.optimizer.state_dict(), extra, self.config.keep_checkpoints)
        self._saved_step = done
        self.accelerator.wait_for_everyone()

    def _resume(self) -> int:
        saved = self.folder.load()
        if self.accelerator.is_main_process:
            self.folder.forget_after(0 if saved is None else saved["step"])
        if saved is None:
            return 0
        try:
            self.accelerator.unwrap_model(self.distiller).load_state_dict(saved["distiller"])
            self.optimizer.load_state_dict(saved["optimizer"])
            names = [name for name, _ in self.student.named_parameters()]
            self.ema.load_state_dict({"shadow_params": [saved["ema"][n] for n in names]})
            self.ema.to(self.accelerator.device)
            if self.accelerator.scaler is not None and "scaler" in saved:
                self.accelerator.scaler.load_state_dict(saved["scaler"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:150]
            raise UserError(f"{self.folder.newest}: does not fit this run ({reason})") from error
        return saved["step"]

    def _ema_state(self) -> dict[str, Tensor]:
        names = [name for name, _ in self.student.named_parameters()]
        return dict(zip(names, self.ema.shadow_params))

    def _averaged(self) -> nn.Module:
        """A copy of the student with the averaged weights."""
        copy = self.config.student.build("models", where="student")
        copy.load_state_dict({k: v.cpu() for k, v in self._ema_state().items()}, strict=False)
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
