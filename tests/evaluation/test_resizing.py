"""Resizing against Pillow."""

import numpy as np
import pytest
import torch
from evaluating import photos
from PIL import Image

from dit_shd.evaluation.resizing import resized


@pytest.mark.parametrize("side", [64, 300])
def test_images_are_resized_as_pillow_does(side):
    smooth = np.asarray(
        Image.fromarray(photos(1, 9, 12, 3)[0].numpy()).resize((side, side - 7), Image.Resampling.BICUBIC)
    )
    theirs = np.asarray(Image.fromarray(smooth).resize((224, 224), Image.Resampling.BICUBIC), dtype=np.float32)
    found = resized(torch.from_numpy(smooth.copy())[None], 224)[0].permute(1, 2, 0).numpy()
    assert np.abs(found - theirs).max() <= 2  # Pillow also rounds between the two directions
    assert np.abs(found - theirs).mean() < 0.25


def test_images_of_the_right_size_are_left_alone():
    images = photos(2, 224, 224, 3)
    assert torch.equal(resized(images, 224), images.permute(0, 3, 1, 2).float())
