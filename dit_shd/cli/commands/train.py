"""Train a model, plainly or by distillation; the same command again resumes."""

import shlex
import sys
from typing import ClassVar

from tqdm.auto import tqdm

from dit_shd.cli.commands import Command
from dit_shd.cli.run_header import RemainingTime, run_header, shown_terms
from dit_shd.core import status
from dit_shd.core.errors import error_line
from dit_shd.core.launcher import is_first_process
from dit_shd.core.signals import Stopped
from dit_shd.data.model_origin import following
from dit_shd.diffusion.sampled_run import words_of_guidance
from dit_shd.models.export import run_values
from dit_shd.reports.dry_run import dry_run_text
from dit_shd.training.config import TrainConfig
from dit_shd.training.dry_run import dry_run
from dit_shd.training.run_folder import RunFolder
from dit_shd.training.trainer import Trainer


class Train(Command[TrainConfig]):
    """Train a model."""

    config = TrainConfig
    divides = True
    words: ClassVar = {"": "CONFIG"}
    words_help = "a YAML file, the name of an experiment (dit-shd configs lists them), or a run folder to go on with"
    places: ClassVar = {"teacher": ("model", "teacher")}
    plugins: ClassVar = {
        "task": "dit_shd.tasks",
        "data": "dit_shd.data.datasets",
        "student": "dit_shd.models.families",
        "losses": "dit_shd.distillation.losses",
    }
    synonyms: ClassVar = {
        "learning_rate": "optimizer.lr",
        "lr": "optimizer.lr",
        "base_lr": "optimizer.lr",
        "weight_decay": "optimizer.weight_decay",
        "wd": "optimizer.weight_decay",
        "warmup": "optimizer.warmup_steps",
        "warmup_steps": "optimizer.warmup_steps",
        "lr_warmup_steps": "optimizer.warmup_steps",
        "scheduler": "optimizer.decay",
        "lr_scheduler": "optimizer.decay",
        "max_grad_norm": "optimizer.clip",
        "gradient_clip_val": "optimizer.clip",
        "epochs": "a run is measured in steps: steps=EPOCHS * images / batch_size; the first lines of a run say how "
        "many steps an epoch has",
        "num_epochs": "a run is measured in steps: steps=EPOCHS * images / batch_size",
        "num_train_epochs": "a run is measured in steps: steps=EPOCHS * images / batch_size",
        "max_epochs": "a run is measured in steps: steps=EPOCHS * images / batch_size",
        "max_steps": "steps",
        "num_steps": "steps",
        "iterations": "steps",
        "max_train_steps": "steps",
        "train_steps": "steps",
        "global_batch_size": "batch_size",
        "train_batch_size": "batch_size",
        "bs": "batch_size",
        "per_device_train_batch_size": "micro_batch_size",
        "local_batch_size": "micro_batch_size",
        "gradient_accumulation_steps": "gradients are accumulated where micro_batch_size is smaller than batch_size / "
        "processes: micro_batch_size=batch_size / processes / STEPS, or micro_batch_size=auto",
        "accumulate_grad_batches": "gradients are accumulated where micro_batch_size is smaller than batch_size / "
        "processes",
        "output_dir": "run",
        "outdir": "run",
        "out": "run",
        "out_dir": "run",
        "save_dir": "run",
        "results_dir": "run",
        "run_dir": "run",
        "logdir": "run",
        "exp_name": "run",
        "name": "run",
        "mixed_precision": "precision",
        "amp": "precision",
        "dtype": "precision",
        "fp16": "precision=fp16",
        "bf16": "precision=bf16",
        "ema_decay": "ema",
        "ema_rate": "ema",
        "model": "student",
        "arch": "student",
        "dataset": "data",
        "data_dir": "data.path",
        "data_path": "data.path",
        "train_data_dir": "data.path",
        "num_workers": "batches are drawn by a thread while a step runs; there are no workers to count",
        "workers": "batches are drawn by a thread while a step runs; task.workers is for images that are augmented",
        "resume": "the same command again goes on from the newest checkpoint; a new run from another's weights is "
        "from=RUN run=FOLDER",
        "resume_from_checkpoint": "the same command again goes on from the newest checkpoint; a new run from "
        "another's weights is from=RUN run=FOLDER",
        "ckpt": "the same command again goes on from the newest checkpoint; a new run from another's weights is "
        "from=RUN run=FOLDER",
        "pretrained": "from=RUN run=FOLDER begins a new run with another's weights",
        "init_from": "from=RUN run=FOLDER begins a new run with another's weights",
        "wandb": "tracker=wandb",
        "report_to": "tracker",
        "logger": "tracker",
        "log_with": "tracker",
        "save_steps": "checkpoint_every",
        "save_every": "checkpoint_every",
        "ckpt_every": "checkpoint_every",
        "checkpointing_steps": "checkpoint_every",
        "logging_steps": "log_every",
        "print_every": "log_every",
        "eval_steps": "validate_every",
        "eval_every": "validate_every",
        "grad_checkpoint": "gradient_checkpointing",
        "activation_checkpointing": "gradient_checkpointing",
        "fsdp": "sharding=fsdp2",
        "loss": "losses",
        "kd_loss": "losses",
        "alpha": "the weight of a loss is its own key: losses='[{name: output, weight: 1}, {name: shd, weight: 0.1}]'",
        "temperature": "a key of a loss: losses='[{name: shd, temperature: 2}]'; dit-shd train --help shd",
        "beta": "the weight of a loss is its own key: losses='[{name: shd, weight: 2}]'",
    }

    def run(self, config: TrainConfig) -> None:
        if config.dry_run:
            text = dry_run_text(dry_run(config))
            if is_first_process():  # of several under a launcher
                print(text)
            return
        with status.shown("dit-shd train: loading models and data ..."):
            trainer = Trainer.from_config(config)
        if trainer.first_step >= config.steps:
            trainer.folder.release()
            if trainer.accelerator.is_main_process:
                print(f"{config.run}: already at step {trainer.first_step} of {config.steps}; raise steps=N to go on")
                _follow(trainer)
            return
        done = _train(trainer)
        if done < config.steps:
            words = f"stopped at step {done} of {config.steps}, saved; the same command goes on from there"
            raise Stopped(trainer.stop.signal, words)
        if trainer.accelerator.is_main_process:
            print(f"done: {RunFolder(config.run).student}")
            _follow(trainer)


def _header(trainer: Trainer) -> str:
    """The header; a model or task that it cannot describe is trained all the same."""
    try:
        return run_header(trainer)
    except (AttributeError, LookupError, TypeError, ValueError, RuntimeError) as error:
        return f"run  {trainer.config.run} (no header: {error_line(error)})"


def _train(trainer: Trainer) -> int:
    """Take the steps that are left behind a header and a bar; the last step that was taken."""
    config, done, shown = trainer.config, trainer.first_step, trainer.accelerator.is_main_process
    if shown:
        print(_header(trainer), file=sys.stderr, flush=True)
    remaining = RemainingTime(done, config.steps)
    interval = 0.1 if sys.stderr.isatty() else 10
    bar = tqdm(
        total=config.steps, initial=done, desc=config.run.name, unit="step", disable=not shown, mininterval=interval
    )
    with trainer.stop.listening(), bar:
        for step in trainer.run_steps():
            done = step.number
            estimate = remaining.after(step)
            if estimate and shown:
                bar.write(estimate, file=sys.stderr)
            if step.metrics:
                bar.set_postfix(shown_terms(step.metrics), refresh=False)
            bar.update()
    return done


def _follow(trainer: Trainer) -> None:
    """Print the commands that a user wants next."""
    run = trainer.config.run
    if trainer.task.prompted:
        print(f"next: dit-shd sample {shlex.quote(str(run))} prompts=prompts.txt")
    elif trainer.task.generates:
        print(following(run, 100, trainer.decodes, words=words_of_guidance(run_values(str(run)))))
    elif trainer.task.measured_by:
        print(f"next: dit-shd {trainer.task.measured_by} {shlex.quote(str(run))}")
