"""Runs of two processes, all by one launch: `torchrun --nproc_per_node 2 tests/two_processes.py CONFIGS.json`.

CONFIGS.json is a list of config values; the same two processes train them one after the other, each to its own `run`.
The first that fails ends the launch.
"""

import json
import sys
from pathlib import Path

import torch
from accelerate.state import AcceleratorState

from dit_shd.core.config import make
from dit_shd.training.config import TrainConfig
from dit_shd.training.trainer import Trainer


def train(values):
    AcceleratorState._reset_state()
    trainer = Trainer.from_config(make(TrainConfig, values))
    assert trainer.accelerator.num_processes == 2
    list(trainer.run_steps())


def main(file):
    torch.set_num_threads(1)
    leave = torch.distributed.destroy_process_group
    torch.distributed.destroy_process_group = lambda *_: None  # as each run does at its end; the next works in it
    for values in json.loads(Path(file).read_text()):
        print(values["run"], flush=True)
        train(values)
    leave()


if __name__ == "__main__":
    main(sys.argv[1])
