"""Image classification: a DeiT of 3 heads from a DeiT III of 6, on augmented and mixed digits; stochastic depth."""

import torch

from dit_shd.core.plugins import Plugin
from dit_shd.models.families import FAMILIES
from task_cases import Case

MODEL = {"in_chans": 1, "img_size": 28, "mean": [0.13], "std": [0.31]}
TINY = {"patch_size": 7, "embed_dim": 24, "depth": 2}


def values(folder):
    torch.manual_seed(1)
    options = {"options": {**TINY, "embed_dim": 48, "num_heads": 6}, "num_classes": 10}
    teacher = Plugin("timm", {"model": "deit3_small_patch16_224", **MODEL, **options})
    FAMILIES.build(teacher).save_pretrained(folder / "teacher")
    student = {"model": "deit_tiny_patch16_224", **MODEL, "options": {**TINY, "num_heads": 3}, "drop_path_rate": 0.3}
    return {
        "task": {"name": "classification", "evaluation": {"data": {"name": "digits", "split": "validation"}}},
        "data": {"name": "digits"},
        "student": {"name": "timm", **student},
        "teacher": str(folder / "teacher"),
        "check_teacher": "no",
        "losses": [{"name": "shd", "plan": "matched"}],
    }


CASE = Case(values, {"plain/cross_entropy", "plain/shd"}, "network.blocks.0.mlp")
