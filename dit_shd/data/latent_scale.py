"""Whether floats of which nothing is known have the scale that is trained: pixels in [-1, 1], latents near 1."""

import math

import numpy as np

from dit_shd.core.errors import UserError
from dit_shd.core.rng import Draws
from dit_shd.data.datasets import Dataset

SAMPLES = 64
"""That are looked at, at equal distances."""
ROUNDING = 1e-2
"""By which a pixel may leave [-1, 1]."""
STANDARDISED = 4.0
"""Beyond it they are no pixels that were divided by their deviation, either."""
USUAL = 0.3, 3.0
"""Deviations of latents that are scaled; those of Stable Diffusion's autoencoder are 5.5 before it."""


def check_scale(dataset: Dataset, pixels: bool) -> str | None:
    """Look at some samples of a dataset whose autoencoder is not known.

    Args:
        dataset: The data of a run.
        pixels: Whether the config says that they are pixels.

    Returns:
        A warning of an unusual scale, which may be meant.

    Raises:
        UserError: Pixels far outside of [-1, 1], of a dataset that knows what its values are.
    """
    if "latents" not in dataset.fields or (dataset.origin is not None and dataset.origin.vae is not None):
        return None
    if dataset.origin is None and "images" in dataset.fields:
        return None  # the dataset makes them of images
    low, high, deviation = _range(dataset)
    found_pixels = f"vae: pixels: wanted values from -1 to 1, found {low:.3g} to {high:.3g}"
    if pixels and dataset.origin is not None and max(-low, high) > STANDARDISED:
        raise UserError(f"{found_pixels}; scale them (0..255 / 127.5 - 1), or leave vae=pixels out if they are latents")
    if pixels and (0 <= low < high or max(-low, high) > 1 + ROUNDING):
        return f"{found_pixels}: what is drawn is taken for values from -1 to 1"
    if pixels or USUAL[0] <= deviation <= USUAL[1]:
        return None
    return (
        "data: wanted latents as the diffusion model sees them, (z - shift) factor, whose deviation is near 1; found "
        f"{deviation:.2g}"
    )


def _range(dataset: Dataset) -> tuple[float, float, float]:
    """The smallest value, the largest, and the deviation."""
    count, low, high, values, total, squares = min(SAMPLES, len(dataset)), math.inf, -math.inf, 0, 0.0, 0.0
    for index in np.arange(count) * len(dataset) // max(count, 1):
        sample = dataset.batch(np.array([index]), Draws(0, 0, [0], len(dataset)))["latents"].double()
        low, high, values = min(low, float(sample.min())), max(high, float(sample.max())), values + sample.numel()
        total, squares = total + float(sample.sum()), squares + float(sample.square().sum())
    return low, high, math.sqrt(max(squares / values - (total / values) ** 2, 0))
