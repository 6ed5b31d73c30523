"""A teacher that is refused, in both processes and by one."""

import json

from small_runs import tiny

from dit_shd.core.config import make
from dit_shd.core.errors import UserError
from dit_shd.training.config import TrainConfig
from dit_shd.training.trainer import Trainer
from two_process_jobs import say


def refused(folder):
    """The line by which the run is refused."""
    try:
        Trainer.from_config(make(TrainConfig, {**tiny(folder), "check_teacher": "refuse"}))
    except UserError as error:
        return str(error)
    raise AssertionError("a random teacher was not refused")


def prepare(folder):
    (folder / "alone.json").write_text(json.dumps(refused(folder)))


def work(folder):
    say(folder, refused(folder))
