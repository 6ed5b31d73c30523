"""Two cases of tests/task_cases: trained by DDP, begun by DDP, and in slices. other_tasks.py has the others."""

import json

import torch
from runs import train_by_two
from task_cases import CASES, COMMON

SLICES = hasattr(torch.cpu.Stream(), "record_event")
"""Whether this torch shards on a CPU."""
NAMES = "text_to_image", "language_modeling"


def prepare(folder, names=NAMES):
    for name in names:
        (folder / name).mkdir(parents=True)
        values = {**COMMON, **CASES[name].values(folder / name)}
        (folder / name / "values.json").write_text(json.dumps(values))


def work(folder, names=NAMES):
    for name in names:
        values = json.loads((folder / name / "values.json").read_text())
        train_by_two(values, folder / name / "ddp")
        train_by_two(values, folder / name / "begun", steps=2)
        if SLICES:
            train_by_two(values, folder / name / "fsdp2", sharding="fsdp2", validate_every=0)
