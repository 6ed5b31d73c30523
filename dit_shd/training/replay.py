"""A bad step of a run, taken again."""

from dataclasses import replace
from pathlib import Path

from dit_shd.core.config import make
from dit_shd.core.errors import UserError
from dit_shd.core.run_files import RUN_CONFIG
from dit_shd.core.yaml_files import read_yaml
from dit_shd.training.config import TrainConfig
from dit_shd.training.diagnosis import Diagnosis
from dit_shd.training.trainer import Trainer


def replay(run: str | Path, step: int) -> Diagnosis:
    """Take a bad step of a run again, from the weights before it; nothing of the step is written.

    The run is taken up as by `dit-shd train` first: rows of its log that are of later steps go, and an export or an
    evaluation that a kill prevented is made.

    Args:
        run: The run folder.
        step: Its number, from 1.

    Raises:
        UserError: The run is not at the step before it.
    """
    if isinstance(step, bool) or not isinstance(step, int):
        raise UserError(f"step: wanted a number from 1, found {step!r}")
    trainer = Trainer.from_config(replace(make(TrainConfig, read_yaml(Path(run) / RUN_CONFIG)), run=Path(run)))
    try:
        if trainer.first_step != step - 1:
            raise UserError(
                f"{run}: is at step {trainer.first_step}; step {step} can be replayed from {step - 1} alone"
            )
        return trainer.diagnose(step - 1)
    finally:
        trainer.folder.release()
