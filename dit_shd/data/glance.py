"""Data at a glance: a few numbers by which samples are known again, whatever their files are called."""

from collections.abc import Sequence

import numpy as np

from dit_shd.core.rng import Draws
from dit_shd.data.datasets import Dataset

SAMPLES = 8
ROUNDING = 1e-3
"""By which the means of one image may differ between decoders, of values whose scale is 1."""


def glance(dataset: Dataset) -> list[float]:
    """The means of SAMPLES samples at equal distances: of pixels in [0, 1], else of each tensor by name."""
    numbers: list[float] = []
    count = min(SAMPLES, len(dataset))
    for index in np.arange(count) * len(dataset) // max(count, 1):
        if "images" in dataset.fields:
            numbers.append(float(dataset.image(int(index)).mean()) / 255)
        else:
            sample = dataset.batch(np.array([index]), Draws(0, 0, [0], len(dataset)))
            numbers += [float(tensor.double().mean()) for _, tensor in sorted(sample.items())]
    return numbers


def alike(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two glances are of the same samples."""
    return len(one) == len(other) and bool(np.allclose(one, other, rtol=ROUNDING, atol=ROUNDING))
