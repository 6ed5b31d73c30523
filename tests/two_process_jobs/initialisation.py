"""A student that begins with its teacher's weights, in both processes."""

import torch
from small_runs import tiny

from dit_shd.core.config import make
from dit_shd.training.config import TrainConfig
from dit_shd.training.trainer import Trainer
from two_process_jobs import say


def config(folder, name):
    values = {**tiny(folder), "initialisation": {"weights": "teacher", "calibration": 8}}
    return make(TrainConfig, {**values, "run": str(folder / name)})


def prepare(folder):
    trainer = Trainer.from_config(config(folder, "one"))
    torch.save(trainer.student.state_dict(), folder / "one.pt")
    trainer.folder.release()


def work(folder):
    trainer = Trainer.from_config(config(folder, "two"))
    one, two = torch.load(folder / "one.pt", weights_only=True), trainer.student.state_dict()
    far = [name for name in one if not torch.allclose(one[name], two[name], rtol=1.3e-6, atol=1e-5)]
    averages = trainer.state.averages.tensors()
    other = [name for name, p in trainer.student.named_parameters() if not torch.equal(averages[name], p)]
    say(folder, trainer.accelerator.num_processes, sorted(one) == sorted(two), far, other)
    trainer.folder.release()
