"""Small things every test may use."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anybody imports triton
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from evaluating import pictures

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))

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


@pytest.fixture(scope="session")
def root() -> Path:
    return Path(__file__).parents[1]


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> Path:
    """An npz of 60 8x8 images in three classes: dark, bright, striped."""
    r = np.random.default_rng(0)
    labels = np.arange(60) % 3
    images = r.integers(0, 60, (60, 8, 8, 1))
    images[labels == 1] += 150
    images[labels == 2, ::2] += 150
    path = tmp_path_factory.mktemp("data") / "shapes.npz"
    np.savez(path, arr_0=images.astype(np.uint8), arr_1=labels)
    return path


@pytest.fixture(scope="session")
def teacher(tmp_path_factory) -> Path:
    """A random MDTv2 of four heads in diffusers format."""
    from dit_shd.models.families.mdt import MDTv2

    torch.manual_seed(1)
    model = MDTv2(**{k: v for k, v in TEACHER.items() if k != "name"})
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    path = tmp_path_factory.mktemp("models") / "teacher"
    model.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def flow_teacher(tmp_path_factory) -> Path:
    """A random DiT of velocities in diffusers format."""
    from dit_shd.models.families.dit import DiT

    torch.manual_seed(2)
    options = {k: v for k, v in TEACHER.items() if k not in ("name", "decode_layer")}
    model = DiT(**options, learn_sigma=False, prediction="velocity_sd3")
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    path = tmp_path_factory.mktemp("models") / "velocity"
    model.save_pretrained(path)
    return path


@pytest.fixture
def values(shapes, teacher, tmp_path) -> dict:
    """The values of a tiny distillation config with every kind of loss."""
    return {
        "run": str(tmp_path / "run"),
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


@pytest.fixture
def files(tmp_path) -> dict[str, Path]:
    """Samples with labels and a reference, as npz files in two folders."""
    samples, reference = tmp_path / "samples" / "set.npz", tmp_path / "reference.npz"
    samples.parent.mkdir()
    np.savez(samples, pictures(40, seed=1), np.arange(40) % 10)
    np.savez(reference, pictures(50, seed=2))
    return {"samples": samples, "reference": reference, "folder": tmp_path}


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """accelerate keeps its state in the process; each test starts without."""
    yield
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
