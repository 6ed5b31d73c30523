"""Compiled blocks by two processes, whole (DDP) and in slices (FSDP2), with and without recomputation."""

import torch
from runs import run, train_by_two
from small_runs import STUDENT, tiny
from torch._dynamo.utils import counters

from dit_shd.models.families.dit import DiT
from two_process_jobs import say

ADAMW = {"name": "adamw", "lr": 1e-3, "eps": 1e-3}
DIT = {k: v for k, v in STUDENT.items() if k not in ("name", "decode_layer")}
SLICED = {"sharding": "fsdp2"}


def configs(folder):
    """Name of a run -> its values and those of its two processes alone, beside compile."""
    mdt = {**tiny(folder), "optimizer": ADAMW, "steps": 3}
    dit = {**mdt, "student": {**DIT, "name": "dit"}, "teacher": str(folder / "dit_teacher"), "mask_ratio": None}
    recomputed = {**dit, "gradient_checkpointing": True}
    return {"whole": (dit, {}), "dit": (dit, SLICED), "recomputed": (recomputed, SLICED), "mdt": (mdt, SLICED)}


def prepare(folder):
    """Every run by one process, whole and not compiled."""
    tiny(folder)
    torch.manual_seed(1)
    teacher = DiT(**{**DIT, "num_attention_heads": 4})
    for p in teacher.parameters():
        torch.nn.init.normal_(p, std=0.1)
    teacher.save_pretrained(folder / "dit_teacher")
    for name, (values, _) in configs(folder).items():
        run(values, run=str(folder / name / "one"))


def work(folder):
    broken = {}
    for name, (values, changes) in configs(folder).items():
        torch._dynamo.reset()
        counters.clear()
        train_by_two(values, folder / name / "two", **changes, compile=True)
        broken[name] = sum(counters["graph_break"].values())
    say(folder, broken)
