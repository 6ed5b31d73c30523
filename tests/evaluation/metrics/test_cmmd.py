"""CMMD against the public code's formula, whole and in float64, and what it is for few images."""

import re

import numpy as np
import pytest
import torch
from evaluating import rows

from dit_shd.core.errors import UserError
from dit_shd.evaluation.feature_set import FeatureSet
from dit_shd.evaluation.metrics import cmmd
from dit_shd.evaluation.metrics.cmmd import CMMD


def published(x: np.ndarray, y: np.ndarray, sigma: float = 10, scale: float = 1000) -> float:
    """From the definition, with the diagonal, of features of length 1."""
    x, y = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x, y))

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return np.exp(-((a[:, None] - b[None]) ** 2).sum(-1) / (2 * sigma**2)).mean()

    return scale * (kernel(x, x) + kernel(y, y) - 2 * kernel(x, y))


@pytest.mark.parametrize("sigma", [10, 0.5])
def test_it_is_the_published_formula(sigma, monkeypatch):
    monkeypatch.setattr(cmmd, "ROWS", 7)  # blocks that do not divide the sets
    x, y = rows(50, 12, seed=60), rows(31, 12, seed=61, scale=1.2, shift=0.3)
    (name, value), *rest = CMMD(sigma).compute(FeatureSet.of(x), FeatureSet.of(y)).items()
    assert name == "CMMD(features)" and not rest
    assert value == pytest.approx(published(x.numpy(), y.numpy(), sigma), rel=1e-9)
    longer = FeatureSet.of(x * torch.linspace(1, 50, 50)[:, None])  # only directions count
    assert CMMD(sigma).compute(longer, FeatureSet.of(y))[name] == pytest.approx(value, rel=1e-12)


def test_of_one_set_with_itself_it_is_zero_and_never_below():
    x = FeatureSet.of(rows(40, 8, seed=62))
    assert CMMD().compute(x, x) == {"CMMD(features)": pytest.approx(0, abs=1e-10)}
    assert CMMD().compute(x, x)["CMMD(features)"] >= 0


def test_one_object_may_be_asked_about_several_references():
    metric, x = CMMD(), FeatureSet.of(rows(20, 8, seed=63))
    for y in (FeatureSet.of(rows(20, 8, seed=seed, shift=0.3)) for seed in (64, 65)):
        assert metric.compute(x, y) == CMMD().compute(x, y)


def test_what_few_images_add_is_said():
    """Two draws of one distribution: the figure is its bias, on average."""
    found, said = [], []
    for seed in range(40):
        x, y = (FeatureSet.of(rows(30, 8, seed=1000 + 2 * seed + i)) for i in range(2))
        found.append(CMMD().compute(x, y)["CMMD(features)"])
        (note,) = CMMD().notes(x, y)
        said.append(float(re.search(r": ([\d.]+) of it is that there are 30 and 30 images", note)[1]))
    assert np.mean(found) == pytest.approx(np.mean(said), abs=3 * np.std(found) / 40**0.5)
    assert np.mean(found) > 5 * np.std(found) / 40**0.5
    x, y = rows(4, 8, seed=66), rows(5, 8, seed=67)
    directions = (z / z.norm(dim=1, keepdim=True) for z in (x, y))
    within = [1 - torch.exp(-torch.cdist(z, z).square() / 200) for z in directions]  # 0 on the diagonal
    exact = 1000 * sum(float(k.sum() / (len(k) * (len(k) - 1)) - k.mean()) for k in within)
    (note,) = CMMD().notes(FeatureSet.of(x), FeatureSet.of(y))
    assert note.startswith(f"CMMD(features): {exact:.3g} of it is that there are 4 and 5 images")
    many = FeatureSet.of(rows(1000, 3, seed=3))
    assert CMMD().notes(many, many) == []


def test_nonsense_is_refused():
    with pytest.raises(UserError, match=r"cmmd\.sigma: wanted more than 0, found 0"):
        CMMD(0)
    with pytest.raises(UserError, match="as many features on both sides, found 4 and 5"):
        CMMD().compute(FeatureSet.of(rows(9, 4, seed=0)), FeatureSet.of(rows(9, 5, seed=0)))
