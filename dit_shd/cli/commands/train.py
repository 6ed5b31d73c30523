"""Train a model, plainly or by distillation; the same command again resumes."""

import shlex
import sys
from typing import ClassVar

from tqdm import tqdm

from dit_shd.cli.commands import Command
from dit_shd.core.distributed import is_first_process
from dit_shd.core.signals import Stopped
from dit_shd.data.model_origin import following
from dit_shd.reports.dry_run import dry_run_text
from dit_shd.training.config import TrainConfig
from dit_shd.training.dry_run import dry_run
from dit_shd.training.trainer import Trainer


class Train(Command[TrainConfig]):
    """Train a model."""

    config = TrainConfig
    words: ClassVar = {"": "CONFIG"}
    words_help = "a YAML file, see configs/"
    places: ClassVar = {"teacher": ("model", "teacher")}

    def run(self, config: TrainConfig) -> None:
        if config.dry_run:
            text = dry_run_text(dry_run(config))
            if is_first_process():  # of several under a launcher
                print(text)
            return
        trainer = Trainer.from_config(config)
        main_process = trainer.accelerator.is_main_process
        if trainer.first_step >= config.steps:
            if main_process:
                print(f"{config.run}: already at step {trainer.first_step} of {config.steps}; raise steps=N to go on")
            trainer.folder.release()
            return
        done = trainer.first_step
        with (
            trainer.stop.listening(),
            tqdm(
                total=config.steps,
                initial=done,
                desc=config.run.name,
                unit="step",
                disable=not main_process,
                mininterval=0.1 if sys.stderr.isatty() else 10,
            ) as bar,
        ):
            for step in trainer.run_steps():
                done = step.number
                bar.update()
                shown = {k: f"{step.metrics[k]:.4f}" for k in ("loss", "plain/noise") if k in step.metrics}
                if shown:
                    bar.set_postfix(shown, refresh=False)
        if done < config.steps:
            words = f"stopped at step {done} of {config.steps}, saved; the same command goes on from there"
            raise Stopped(trainer.stop.signal, words)
        if main_process:
            print(f"done: {trainer.folder.student}")
            if trainer.task.prompted:
                print(f"next: dit-shd sample {shlex.quote(str(config.run))} prompts=prompts.txt")
            elif trainer.task.generates:
                print(following(config.run, 100, trainer.decodes))
