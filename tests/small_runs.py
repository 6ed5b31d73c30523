"""The tiny config of tests with its data and teachers, in a folder: also for processes that tests start."""

import numpy as np
import torch

STUDENT = {
    "name": "mdt",
    "sample_size": 8,
    "patch_size": 2,
    "in_channels": 1,
    "num_classes": 3,
    "num_layers": 4,
    "decode_layer": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 4,
}
TEACHER = {**STUDENT, "num_attention_heads": 4}


def write_shapes(path):
    """An npz of 60 8x8 images in three classes: dark, bright, striped."""
    r = np.random.default_rng(0)
    labels = np.arange(60) % 3
    images = r.integers(0, 60, (60, 8, 8, 1))
    images[labels == 1] += 150
    images[labels == 2, ::2] += 150
    np.savez(path, arr_0=images.astype(np.uint8), arr_1=labels)
    return path


def write_teacher(folder, seed=1, **changes):
    """A random MDTv2 of four heads in diffusers format."""
    from dit_shd.models.families.mdt import MDTv2

    torch.manual_seed(seed)
    model = MDTv2(**{k: v for k, v in {**TEACHER, **changes}.items() if k != "name"})
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    model.save_pretrained(folder)
    return folder


def deep_teacher(folder):
    """Another of three heads and twice the depth."""
    return write_teacher(folder, 2, num_attention_heads=3, num_layers=8, decode_layer=4)


def values_of(shapes, teacher, run):
    """The values of a tiny distillation config with every kind of loss."""
    return {
        "run": str(run),
        "data": {"name": "npz", "path": str(shapes), "flip": True},
        "student": dict(STUDENT),
        "teacher": str(teacher),
        "check_teacher": "no",  # it is random
        "losses": [{"name": "output", "variance": True}, {"name": "shd", "weight": 0.5}],
        "steps": 4,
        "batch_size": 8,
        "log_every": 1,
        "checkpoint_every": 2,
        "ema": 0.9,
        "optimizer": {"lr": 1e-2, "warmup_steps": 2, "decay": "cosine"},
    }


def tiny(folder):
    """The same, with data and teacher in a folder, made if they are not there."""
    if not (folder / "shapes.npz").exists():
        write_shapes(folder / "shapes.npz")
        write_teacher(folder / "teacher")
    return values_of(folder / "shapes.npz", folder / "teacher", folder / "run")
