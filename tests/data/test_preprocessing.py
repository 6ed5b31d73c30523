"""Decoding to RGB, and the centre crop of ADM."""

import io

import numpy as np
import pytest
import torch
from encoded import pictures
from PIL import Image
from png16 import deep_png
from torch.nn import functional as F

from dit_shd.data.preprocessing import centre_crop, pixels
from dit_shd.data.sources.decoding import CLEAR, DEEP


@pytest.mark.parametrize(("width", "height"), [(96, 80), (80, 96), (64, 64), (23, 17), (16, 40), (5, 9)])
def test_the_crop_is_adms(width, height):
    """Against torch: average pooling by two, antialiased bicubic (a = -0.5 as pillow's), the middle."""
    torch.manual_seed(0)
    smooth = F.interpolate(torch.rand(1, 3, 6, 6), (height, width), mode="bicubic").clamp(0, 1)
    image = (smooth[0].permute(1, 2, 0) * 255).byte().numpy()
    x = torch.from_numpy(image).permute(2, 0, 1)[None].float()
    while min(x.shape[2:]) >= 32:
        x = F.avg_pool2d(x, 2).round()
    scale = 16 / min(x.shape[2:])
    y_size, x_size = (round(side * scale) for side in x.shape[2:])
    x = F.interpolate(x, (y_size, x_size), mode="bicubic", antialias=True).clamp(0, 255)
    top, left = (y_size - 16) // 2, (x_size - 16) // 2
    wanted = x[0, :, top : top + 16, left : left + 16].permute(1, 2, 0).numpy()
    found = centre_crop(Image.fromarray(image), 16)
    assert found.dtype == np.uint8
    assert np.abs(found - wanted).max() < 2.6  # pillow rounds after each of two directions


@pytest.mark.parametrize(("rows", "columns"), [(64, 96), (96, 64), (60, 140)])
def test_a_rectangle_is_cut_from_the_image_that_just_covers_it(rows, columns):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (100, 150, 3), dtype=np.uint8))
    scale = max(rows / 100, columns / 150)
    width, height = round(150 * scale), round(100 * scale)
    whole = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    assert rows == height or columns == width
    top, left = (height - rows) // 2, (width - columns) // 2
    np.testing.assert_array_equal(centre_crop(image, (rows, columns)), whole[top : top + rows, left : left + columns])


def test_an_image_of_the_size_is_left_alone():
    (image,) = pictures(1)
    np.testing.assert_array_equal(pixels(image, 8)[0], image)
    assert pixels(image, 8)[1] == () and pixels(image, 9)[1] == ("smaller than the crop, and enlarged",)


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "CMYK"])
def test_other_modes_become_rgb(mode):
    stream = io.BytesIO()
    Image.fromarray(pictures(1)[0]).convert(mode).save(stream, "jpeg" if mode == "CMYK" else "png")
    found, remarks = pixels(stream.getvalue(), 8)
    assert found.shape == (8, 8, 3)
    assert remarks == ((CLEAR,) if mode in ("LA", "RGBA") else ())


@pytest.mark.parametrize("channels", [2, 3, 4])
@pytest.mark.parametrize("interlaced", [False, True])
def test_deep_colours_are_rounded(channels, interlaced):
    """To the nearest of 8 bits: value / 257, as the PNG specification scales."""
    values = np.random.default_rng(0).integers(0, 2**16, (16, 16, channels), dtype=np.uint16)
    found, remarks = pixels(deep_png(values, interlaced), 16)
    colours = values[..., :3] if channels > 2 else values[..., [0, 0, 0]]
    np.testing.assert_array_equal(found, np.rint(colours / 257).astype(np.uint8))
    assert remarks == (("of 16 bits a channel, rounded to 8",) if channels == 3 else (DEEP, CLEAR))
