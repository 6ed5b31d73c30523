"""Colours of values: they grow lighter, and texts on them can be read."""

import io
from itertools import pairwise

import numpy as np
from PIL import Image

from dit_shd.reports.figures.heat import ANCHORS, colour, heat_png, ink_on, table


def luminance(levels) -> float:
    x = np.asarray(levels) / 255
    return float(np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])


def test_more_is_always_lighter_also_in_grey():
    values = [luminance(row) for row in table()]
    assert all(a < b for a, b in pairwise(values))
    assert colour(0) == ANCHORS[0] and colour(1) == ANCHORS[-1] and colour(2) == ANCHORS[-1]


def test_text_on_every_colour_can_be_read():
    for row in table():
        ink = ink_on("#{:02x}{:02x}{:02x}".format(*row))
        a, b = luminance(row), luminance([255 * (ink == "#ffffff")] * 3)
        assert (max(a, b) + 0.05) / (min(a, b) + 0.05) >= 4.5


def test_a_picture_has_the_colours_of_its_values():
    image = Image.open(io.BytesIO(heat_png(np.array([[0.0, 0.5, 1.0]])))).convert("RGB")
    assert [image.getpixel((x, 0)) for x in range(3)] == [tuple(table()[i]) for i in (0, 128, 255)]
