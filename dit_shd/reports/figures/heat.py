"""Values as colours: from black over violet and orange to pale yellow, dark to light also in grey."""

import zlib
from functools import cache

import numpy as np

from dit_shd.reports.html import png

ANCHORS = (
    "#000004", "#180f3d", "#440f76", "#721f81", "#9e2f7f", "#cd4071", "#f1605d", "#fd9668", "#feca8d", "#fcfdbf",
)  # fmt: skip
"""Colours at equal distances; between them they are interpolated."""
LEVELS = 255


@cache
def table() -> np.ndarray:
    """The colours of LEVELS + 1 levels, uint8 [level,3]."""
    colours = np.array([[int(anchor[i : i + 2], 16) for i in (1, 3, 5)] for anchor in ANCHORS])
    places = np.linspace(0, len(ANCHORS) - 1, LEVELS + 1)
    channels = [np.interp(places, np.arange(len(ANCHORS)), channel) for channel in colours.T]
    return np.stack(channels, 1).round().astype(np.uint8)


def colour(share: float) -> str:
    """The colour of a value between 0 and 1."""
    red, green, blue = table()[round(LEVELS * min(max(share, 0.0), 1.0))]
    return f"#{red:02x}{green:02x}{blue:02x}"


def ink_on(hex_colour: str) -> str:
    """Black or white, whichever contrasts more with a colour (WCAG 2; at least 4.58)."""
    levels = [int(hex_colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in levels]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000000" if luminance > 0.179 else "#ffffff"


def heat_png(shares: np.ndarray) -> bytes:
    """Values [y,x] between 0 and 1 as a PNG with a palette, one pixel each."""
    from PIL import Image

    image = Image.fromarray((LEVELS * shares.clip(0, 1)).round().astype(np.uint8))
    image.putpalette(table().tobytes())
    return png(image)


def bar(ends: tuple[str, str, str], words: str) -> str:
    """A colour bar as HTML: texts of its beginning, its middle and its end."""
    spans = "".join(f"<span>{text}</span>" for text in ends)
    gradient = f"background: linear-gradient(to right, {', '.join(ANCHORS)})"
    return f'<p class="bar" role="img" aria-label="{words}"><i style="{gradient}"></i>{spans}</p>'


def packed(levels: np.ndarray) -> bytes:
    """Levels uint8 as zlib makes them small."""
    return zlib.compress(np.ascontiguousarray(levels, dtype=np.uint8).tobytes(), 9)
