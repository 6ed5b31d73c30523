"""Class-conditional diffusion: MDTv2 with its masked pass."""

import numpy as np
import torch

from dit_shd.models.families.mdt import MDTv2
from task_cases import Case

MODEL = {"sample_size": 28, "patch_size": 7, "in_channels": 1, "num_classes": 10, "num_layers": 4, "decode_layer": 2}
MODEL |= {"num_attention_heads": 2, "attention_head_dim": 4}


def random_model(cls, folder, **options):
    """A model with random weights everywhere, saved."""
    torch.manual_seed(1)
    model = cls(**options)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    model.save_pretrained(folder)
    return str(folder)


def images(file):
    """12 images of noise in ten classes."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 28, 28, 1), dtype=np.uint8)
    np.savez(file, pixels, np.arange(12) % 10)
    return str(file)


def evaluation(reference):
    """Six images, and how far they are from a reference."""
    return {
        "count": 6,
        "steps": 2,
        "reference": reference,
        "features": "digits",
        "sample": {"batch_size": 3},
        "evaluate": {"metrics": ["frechet"], "page": False},
    }


def values(folder):
    data = images(folder / "images.npz")
    return {
        "task": {"name": "diffusion", "evaluation": evaluation(data)},
        "data": {"name": "npz", "path": data, "flip": True},
        "student": {"name": "mdt", **MODEL},
        "teacher": random_model(MDTv2, folder / "teacher", **{**MODEL, "num_attention_heads": 4}),
        "check_teacher": "no",
        "losses": [{"name": "output", "variance": True}, {"name": "shd", "plan": "matched"}],
    }


CASE = Case(values, {"plain/noise", "masked/noise", "plain/output", "plain/shd"}, "en_inblocks.0.mlp")
