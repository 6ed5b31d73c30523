"""A number that goes bad in the second process alone, in two steps of which one may be left out."""

from small_runs import tiny

from dit_shd.core.config import make
from dit_shd.core.errors import UserError
from dit_shd.training.config import TrainConfig
from dit_shd.training.trainer import Trainer
from two_process_jobs import say


def prepare(folder):
    tiny(folder)


def work(folder):
    values = {**tiny(folder), "steps": 5, "skip_bad_steps": 1, "log_every": 1}
    trainer = Trainer.from_config(make(TrainConfig, values))
    finished, second = [0], trainer.accelerator.process_index
    trainer.student.en_inblocks[0].register_forward_hook(
        lambda _, args, out: out * float("nan") if second and finished[0] in (1, 3) else out
    )
    try:
        for step in trainer.run_steps():
            finished[0] = step.number
    except UserError as error:
        say(folder, str(error))
