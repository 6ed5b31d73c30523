"""One npz file as a dataset."""

import numpy as np
import torch

from dit_shd.core.plugins import Plugin
from dit_shd.core.rng import Draws
from dit_shd.data.datasets import DATASETS


def test_flips_mirror_half_of_the_images(shapes):
    plain = DATASETS.build(Plugin("npz", {"path": str(shapes)}))
    flipped = DATASETS.build(Plugin("npz", {"path": str(shapes), "flip": True}))
    indices = np.arange(60)
    a, b = (d.batch(indices, Draws(0, 0, range(60), 60))["latents"] for d in (plain, flipped))
    mirrored = [torch.equal(x.flip(-1), y) and not torch.equal(x, y) for x, y in zip(a, b)]
    assert all(m or torch.equal(x, y) for m, x, y in zip(mirrored, a, b))
    assert 15 < sum(mirrored) < 45
