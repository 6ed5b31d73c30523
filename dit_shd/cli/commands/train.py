"""`dit-shd train`: a model, plainly or by distillation."""

import argparse
import os
import sys
from pathlib import Path


def run_train(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    from dit_shd.core.config import make
    from dit_shd.core.places import look
    from dit_shd.core.signals import Stopped
    from dit_shd.core.yaml_files import override, read_yaml
    from dit_shd.data.latent_origin import following

    values = override(read_yaml(Path(options.first)), options.assignments)
    if not values.get("dry_run"):  # which can do without the teacher
        look(values, {"teacher": ("model", "teacher")})
    from dit_shd.training.config import TrainConfig
    from dit_shd.training.trainer import Trainer

    config = make(TrainConfig, values)
    if config.dry_run:
        from dit_shd.reports.dry_run import dry_run

        found = dry_run(config)
        if int(os.environ.get("RANK", "0")) == 0:
            print(found)
        return
    trainer = Trainer(config)
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
        print(f"done: {trainer.folder.student}\n{following(config.run, 100, trainer.decodes)}")
