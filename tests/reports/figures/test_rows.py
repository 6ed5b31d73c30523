"""The picture of several models."""

import io

import numpy as np
from PIL import Image

from dit_shd.reports.figures.rows import GAP, MARGIN, SIDE, rows_picture


def test_every_model_has_a_row_of_its_first_images():
    dark, bright = np.zeros((12, 28, 28, 1), np.uint8), np.full((12, 28, 28, 3), 255, np.uint8)
    dark[0] = 255
    picture = Image.open(io.BytesIO(rows_picture({"teacher": dark, "student\nwith SHD": bright}, columns=5)))
    pixels = np.asarray(picture.convert("L"))
    assert pixels.shape[0] == 2 * MARGIN + 2 * SIDE + GAP
    right = pixels.shape[1] - MARGIN
    first = right - 5 * SIDE - 4 * GAP
    row = pixels[MARGIN + SIDE // 2, first:right]
    means = [row[i * (SIDE + GAP) : i * (SIDE + GAP) + SIDE].mean() for i in range(5)]
    assert means == [255, 0, 0, 0, 0]
    assert (pixels[MARGIN : MARGIN + SIDE, :first] < 128).any(), "its label"
