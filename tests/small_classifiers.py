"""A small classifier of timm, and its task."""

import torch

from dit_shd.core.plugins import Plugin
from dit_shd.core.rng import Draws
from dit_shd.data.datasets import DATASETS
from dit_shd.models.families import FAMILIES
from dit_shd.tasks.classification import Classification

TINY = dict(patch_size=7, embed_dim=24, depth=2, num_heads=3)
GRAY = dict(in_chans=1, img_size=28, mean=[0.13], std=[0.31])
STUDENT = {"name": "timm", "model": "deit_tiny_patch16_224", **GRAY, "options": TINY, "drop_path_rate": 0.2}


def classification(batch_size=8, seed=0, **options):
    """The task of the digits and a tiny DeiT, and a function that draws positions of a step."""
    task = Classification(**options)
    torch.manual_seed(0)
    student = FAMILIES.build(Plugin("timm", {k: v for k, v in STUDENT.items() if k != "name"} | {"num_classes": 10}))
    task.use(DATASETS.build(Plugin("digits")), student)
    return task, student, lambda step, positions: task.draw(Draws(seed, step, positions, batch_size))[0]
