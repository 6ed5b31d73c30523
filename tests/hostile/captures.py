"""What is given to the plug-in in place of a bias, of captures or of a model."""

import random
from pathlib import Path

import numpy as np
import torch
from torch import nn

from dit_shd import SHD, Capture, attach_processors, attention_kl, capture, squeeze

from . import Class

B, H, N, M = 2, 4, 3, 5
SIZES = [1, 1, 2, 3, 4, 5, 6]
MASKS = [0.0, -1e9, -torch.inf, torch.finfo(torch.float32).min, 1e30]


def layer(bias: object = None, heads: int = H, seed: int = 0) -> Capture:
    r = torch.Generator().manual_seed(seed)
    query, key, value = (torch.randn(B, heads, tokens, 4, generator=r) for tokens in (N, M, M))
    return Capture(query, key, value, 0.5, bias, out=torch.randn(heads, 4, 8, generator=r))  # type: ignore[arg-type]


def bias(draw: random.Random, folder: Path) -> object:
    """Of any shape, kind and size of numbers: a divergence that is accepted is no NaN and not negative."""
    shape = [draw.choice(SIZES) for _ in range(draw.choice([0, 1, 2, 2, 3, 4, 5]))]
    if draw.random() < 0.6:
        shape = draw.choice([[N, M], [M], [1, M], [B, 1, N, M], [B, 1, 1, M], [1, 1, N, 1]])
    given: object = torch.zeros(shape).masked_fill(torch.rand(shape) < draw.random(), draw.choice(MASKS))
    kind = draw.choice(["float", "float", "half", "bool", "int", "numpy", "list", "complex", "text"])
    if isinstance(given, torch.Tensor) and kind != "float":
        bent = {"half": given.half, "bool": given.bool, "int": given.clamp(-9, 9).int, "numpy": given.numpy}
        given = bent[kind]() if kind in bent else given.tolist() if kind == "list" else given.cfloat()
    teacher = layer("-inf" if kind == "text" else given)
    student = layer(heads=2, seed=1)
    found = attention_kl(teacher, student, squeeze(teacher, 2), draw.choice([0.3, 1.0, 3.0]))
    assert (found >= -1e-5).all(), found
    return found


def hands(draw: random.Random, folder: Path) -> object:
    """Models, recordings that were not begun, files, nothing: in place of captures, of one layer and of a model."""
    model = nn.MultiheadAttention(8, 2)
    whole, few = {"a": layer(), "b": layer()}, {"a": layer(heads=2, seed=1), "b": layer(heads=2, seed=2)}
    odd = [
        model,
        capture(model),
        None,
        {},
        [],
        "captures.pt",
        folder,
        torch.zeros(2),
        np.zeros(2),
        {"a": None},
        1,
        whole,
    ]
    first, second = draw.choice([*odd, few]), draw.choice([*odd, few])
    calls = [
        lambda: SHD()(first, second),
        lambda: SHD(plan="matched").calibrate(first, second),
        lambda: squeeze(first, 2),
        lambda: attention_kl(first, second, squeeze(whole["a"], 2)),
        lambda: capture(first).__enter__(),
        lambda: attach_processors(first),
        lambda: dict(capture(model)),
    ]
    return draw.choice(calls)()


CLASSES = [
    Class(
        "biases", "tensors and other things of any shape and kind, masks of any size; Capture, squeeze, KL", 60, bias
    ),
    Class("wrong hands", "models, files and nothing in place of captures and models; SHD, squeeze, capture", 60, hands),
]
