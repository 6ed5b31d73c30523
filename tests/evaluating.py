"""What tests of evaluation share: images, runs, refusals, a pickle that must never run."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dit_shd.core.config import make
from dit_shd.core.errors import UserError
from dit_shd.data.datasets.digits import DigitsDataset
from dit_shd.evaluation.evaluate import EvaluateConfig, evaluate
from dit_shd.evaluation.features import Features
from dit_shd.evaluation.features.digits import DigitsFeatures
from dit_shd.reports.evaluation_page import write_evaluation_page


class Trap:
    """Unpickling this makes a folder: proof that code ran."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


class Spatial(DigitsFeatures):
    """The digits network, with a quarter of the pixels as spatial features."""

    has_spatial = True

    def _forward(self, images: Tensor) -> Features:
        found = super()._forward(images)
        return Features(found.pooled, found.logits, images[:, ::4, ::4].flatten(1).float())


class Scaled(DigitsFeatures):
    """The digits network, whose features an option multiplies."""

    has_logits = False

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.title, self.scale = "scaled", scale

    def _forward(self, images: Tensor) -> Features:
        return Features(self.scale * super()._forward(images).pooled)


def pictures(n: int, seed: int, shape: tuple[int, ...] = (28, 28, 1)) -> np.ndarray:
    """Random smooth blots, uint8 [n,y,x,c]."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (n, 4, 4, shape[2]), dtype=np.uint8)
    return coarse.repeat(-(-shape[0] // 4), 1)[:, : shape[0]].repeat(-(-shape[1] // 4), 2)[:, :, : shape[1]]


def run(files: dict[str, Path], **values) -> dict:
    defaults = {"samples": str(files["samples"]), "reference": str(files["reference"]), "features": "digits"}
    config = make(EvaluateConfig, {**defaults, "device": "cpu", **values})
    return evaluate(config, write_page=write_evaluation_page)


def refused(files: dict[str, Path], **values) -> str:
    with pytest.raises(UserError) as caught:
        run(files, **values)
    message = str(caught.value)
    assert "\n" not in message
    return message


def rows(n: int, d: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> torch.Tensor:
    """Correlated features [n, d] in float64 whose directions have different widths."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((d, d)) * np.geomspace(1, 0.05, d)
    return torch.from_numpy(rng.standard_normal((n, d)) @ mixing * scale + shift)


def photos(n: int, h: int, w: int, c: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (n, h, w, c), dtype=np.uint8))


def sorted_digits() -> tuple[np.ndarray, np.ndarray]:
    """Real digits, 500 in all, class by class."""
    data = DigitsDataset("validation")
    order = np.argsort(data.labels(), kind="stable")
    return data.images()[order], data.labels()[order]


def save_grays(folder: Path, names: list[str], channels: int = 1, **options) -> np.ndarray:
    """Different gray pictures, in the order of the names; [n, h, w, 1]."""
    images = pictures(len(names), seed=3)
    for name, image in zip(names, images):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.repeat(channels, 2).squeeze()).save(folder / name, **options)
    return images
