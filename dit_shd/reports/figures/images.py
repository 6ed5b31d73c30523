"""Sheets of images, and images as points."""

import io
from collections.abc import Sequence

import numpy as np

from dit_shd.data.image_sets import ImageSet
from dit_shd.data.pixels import grid
from dit_shd.reports.figures.chart import Axis, Chart
from dit_shd.reports.html import png

THUMB = 96
"""Pixels of the longer side of an image on a page."""


def thumbnails(images: np.ndarray, columns: int) -> bytes:
    """Images uint8 [n,y,x,c], row by row, as PNG; large ones are reduced, small ones enlarged."""
    from PIL import Image

    n, y, x, c = images.shape
    factor = THUMB / max(y, x)
    size = (max(1, round(x * factor)), max(1, round(y * factor)))
    filter = Image.Resampling.NEAREST if factor > 1 else Image.Resampling.LANCZOS
    small = [np.asarray(Image.fromarray(image[..., 0] if c == 1 else image).resize(size, filter)) for image in images]
    return png(grid(np.stack(small).reshape(n, size[1], size[0], c), columns))


def reduced(picture: bytes, most: int = 720) -> bytes:
    """A PNG, smaller if it is wider than `most` pixels."""
    from PIL import Image

    with Image.open(io.BytesIO(picture)) as image:
        if image.width <= most:
            return picture
        small = image.resize((most, max(1, image.height * most // image.width)), Image.Resampling.LANCZOS)
    return png(small)


def class_sheet(samples: ImageSet, labels: np.ndarray, classes: Sequence[int], rows: int) -> bytes:
    """The first images of each class as PNG, a class in each column.

    Args:
        samples: The images.
        labels: Their labels [n].
        classes: Those that are shown.
        rows: Images of each, where there are as many.
    """
    numbers = np.full((rows, len(classes)), -1)
    for column, label in enumerate(classes):
        where = np.flatnonzero(labels == label)[:rows]
        numbers[: len(where), column] = where
    places = numbers[(numbers >= 0).any(1)].ravel()
    sheet = np.full((len(places), *samples.shape[1:]), 255, dtype=np.uint8)
    sheet[places >= 0] = samples.take(places[places >= 0])
    return thumbnails(sheet, len(classes))


def points_chart(behind: np.ndarray, points: np.ndarray, inside: np.ndarray, title: str, words: Sequence[str]) -> Chart:
    """Points [n,2] in front of others [m,2]; those that are not `inside` [n] in another colour, with their words."""
    everything = np.concatenate([behind, points])
    low, high = np.percentile(everything, 0.5, axis=0), np.percentile(everything, 99.5, axis=0)
    high = np.maximum(high, low + 1e-12)
    names = ("first direction of the reference", "second direction")
    across, upwards = (Axis(name, float(a), float(b)) for name, a, b in zip(names, low, high))
    chart = Chart(title, across, upwards, (420, 340))
    for x, y in behind.clip(low, high).tolist():
        chart.behind(x, y)
    for (x, y), is_inside, text in zip(points.clip(low, high).tolist(), inside, words):
        chart.dot(x, y, "s1" if is_inside else "s0", text, radius=2.2)
    return chart
