"""The accuracy of a random classifier, of whose images each process has a share."""

import json

import torch

from dit_shd.core.plugins import Plugin
from dit_shd.data.datasets import DATASETS
from dit_shd.models.families import FAMILIES
from dit_shd.tasks.classification import AccuracyEvaluation, Classification
from two_process_jobs import say

GRAY = {"in_chans": 1, "img_size": 28, "mean": [0.13], "std": [0.31], "num_classes": 10}
TINY = {"patch_size": 7, "embed_dim": 24, "depth": 1, "num_heads": 3}


def evaluated(folder):
    torch.manual_seed(0)
    student = FAMILIES.build(Plugin("timm", {"model": "deit_tiny_patch16_224", **GRAY, "options": TINY})).eval()
    data = Plugin("digits", {"split": "validation"})
    task = Classification(evaluation=AccuracyEvaluation(data))
    task.use(DATASETS.build(data), student)
    return task.evaluate(student, folder, 0)


def prepare(folder):
    (folder / "alone.json").write_text(json.dumps(evaluated(folder)))


def work(folder):
    say(folder, evaluated(folder))
