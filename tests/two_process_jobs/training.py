"""Training runs of the tiny config: whole and in slices, resumed, with losses and teachers of several kinds.

other_training.py has the others of them.
"""

import sys
from contextlib import contextmanager

import torch
from runs import run, train_by_two
from small_families import diffusers_dit
from small_runs import deep_teacher, tiny

from dit_shd.core import plugins

NAMES = "hints", "sharded", "bad", "sharded_projectors", "sharded_diffusers"
SLICES = hasattr(torch.cpu.Stream(), "record_event")
"""Whether this torch shards on a CPU."""
LOSSES = """import os
import torch
from torch import nn
from dit_shd.distillation.losses import LayerLoss, Loss, Reads, Term

class Bad(Loss):
    \"\"\"Trains a projector; not finite in the second step of the first process.\"\"\"

    def __init__(self):
        super().__init__()
        self.projector = nn.Linear(8, 8)

    def term(self, student, teacher, batch):
        value = (self.projector(student.prediction) - teacher.prediction).square().flatten(1).mean(1)
        bad = batch.step == 1 and os.environ.get("RANK", "0") == "0"
        return Term(value * float("nan") if bad else value)

class Hints(LayerLoss):
    reads = frozenset({Reads.HIDDEN})

    def __init__(self):
        super().__init__()
        self.projector = nn.Linear(8, 16)

    def pair(self, student, teacher, batch):
        return Term((self.projector(student.hidden) - teacher.hidden).square().flatten(1).mean(1))
"""
ADAMW = {"name": "adamw", "lr": 1e-3, "eps": 1e-3}
PROJECTORS = [
    *({"name": name} for name in ("feature", "vkd", "attention_output", "align_to_distill", "diffkd", "shd")),
    {"name": "vitkd", "prefix_tokens": 0},
]
DIT = {
    **dict(num_attention_heads=2, attention_head_dim=8, in_channels=1, out_channels=2, num_layers=2),
    **dict(sample_size=8, patch_size=2, num_embeds_ada_norm=3),
}
MATCHED = [{"name": "output"}, {"name": "shd", "plan": "matched", "calibration": 1}]


def configs(folder, names=NAMES):
    """Name of a run -> its values and those of its two processes alone."""
    values = tiny(folder)
    steady = {**values, "optimizer": ADAMW, "steps": 3}
    hints = {**steady, "losses": [{"name": "two_losses.Hints"}, {"name": "shd"}]}
    teachers = {"wide": values["teacher"], "deep": str(folder / "deep")}
    losses = [{"name": "shd"}, {"name": "shd", "teacher": "deep"}, {"name": "output", "teacher": "deep"}]
    found = {
        "hints": (hints, {}),
        "teachers": ({**steady, "teacher": teachers, "losses": losses}, {}),
        "projectors": ({**steady, "losses": PROJECTORS}, {}),
    }
    if SLICES:
        bad = {**steady, "losses": [{"name": "two_losses.Bad"}], "skip_bad_steps": 1}
        sliced = {"sharding": "fsdp2"}
        student = {"name": "diffusers", "transformer": "DiTTransformer2DModel", "config": DIT}
        diffusers = {"teacher": str(folder / "dit"), "student": student, "mask_ratio": None}
        found |= {
            "sharded": ({**steady, "ema": [0.9, 0.5], "losses": MATCHED}, sliced),
            "bad": (bad, sliced),
            "sharded_hints": (hints, sliced),
            "sharded_projectors": ({**steady, "losses": PROJECTORS}, sliced),
            "sharded_teachers": ({**steady, "teacher": teachers, "losses": losses}, sliced),
            "sharded_diffusers": ({**steady, **diffusers}, sliced),
        }
    return {name: found[name] for name in names if name in found}


@contextmanager
def trusted(folder):
    """The losses of this file, in this process."""
    sys.path.insert(0, str(folder))
    plugins.trust("two_losses")
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        plugins._trusted.discard("two_losses")
        sys.modules.pop("two_losses", None)


def prepare(folder, names=NAMES):
    """Every run by one process; and one of them again, to be resumed by two."""
    tiny(folder)
    deep_teacher(folder / "deep")
    diffusers_dit(num_attention_heads=4).save_pretrained(folder / "dit")
    (folder / "two_losses.py").write_text(LOSSES)
    with trusted(folder):
        for name, (values, _) in configs(folder, names).items():
            run(values, run=str(folder / name / "one"))
        if SLICES and "sharded" in names:
            run(configs(folder)["sharded"][0], run=str(folder / "resumed"))


def work(folder, names=NAMES):
    with trusted(folder):
        for name, (values, changes) in configs(folder, names).items():
            train_by_two(values, folder / name / "two", **changes)
        if SLICES and "sharded" in names:
            values, changes = configs(folder)["sharded"]
            train_by_two(values, folder / "resumed", **changes, steps=5)
