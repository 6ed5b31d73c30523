"""Attention maps as pictures: of query tokens in each head, and of all tokens."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from dit_shd.analysis.survey import LayerMaps
from dit_shd.reports.figures.alpha import short_layer
from dit_shd.reports.figures.chart import Axis, Chart
from dit_shd.reports.figures.heat import heat_png, table
from dit_shd.reports.html import data_uri, png

if TYPE_CHECKING:
    from PIL.Image import Image

TILE, GAP, MARGIN = 96, 6, 84
"""Pixels of a map's longer side, between maps, and of the names on the left."""
FRAME = "#31d0c6"
"""Colour of the frame around the query token."""


def whole_charts(layers: Mapping[str, LayerMaps]) -> list[Chart]:
    """The map of each layer over all tokens, mean over heads: keys across, queries down."""
    drawn = []
    for name, layer in layers.items():
        n, m = layer.token_count, layer.rows.shape[2]
        chart = Chart(short_layer(name), Axis("key token", 0, m), Axis("query token", n, 0), (280, 280), square=True)
        top = max(float(layer.binned.max()), 1e-30)
        chart.image(data_uri(heat_png(np.sqrt(layer.binned / top))))
        drawn.append(chart)
    return drawn


def maps_sheet(layer: LayerMaps, pictures: Mapping[str, np.ndarray]) -> bytes:
    """A PNG with a line for each query token, and one for the mean over all tokens; a column for each head.

    Args:
        layer: The maps.
        pictures: The model's input by title, [y,x] or [y,x,3] from 0 to 1; on the left, with the tokens framed.
    """
    from PIL import Image, ImageDraw

    lines = [*layer.rows, layer.received]
    keys = layer.keys or (1, layer.rows.shape[2])
    width, height = _tile(keys)
    titles = [*pictures, *(f"head {head}" for head in range(layer.rows.shape[1]))]
    size = (MARGIN + len(titles) * (width + GAP), 22 + len(lines) * (height + GAP))
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(titles):
        draw.text((MARGIN + column * (width + GAP), 4), title, fill="#222")
    for row, maps in enumerate(lines):
        token = layer.tokens[row] if row < len(layer.tokens) else None
        y = 22 + row * (height + GAP)
        draw.text((2, y), "mean of all" if token is None else f"token {token}", fill="#222")
        tiles = [(_grey(pixels), layer.queries) for pixels in pictures.values()]
        top = max(float(maps.max()), 1e-30)
        shares = np.sqrt(maps / top).reshape(-1, *keys)
        tiles += [
            (table()[(255 * s).round().astype(int)], keys if layer.keys == layer.queries else None) for s in shares
        ]
        for column, (pixels, grid) in enumerate(tiles):
            corner = (MARGIN + column * (width + GAP), y)
            _put(sheet, pixels, corner, (width, height), None if grid is None or token is None else (token, grid))
    return png(sheet)


def _tile(keys: tuple[int, int]) -> tuple[int, int]:
    """Width and height of a map; a strip of keys in a line is low."""
    rows, columns = keys
    if rows == 1:
        return TILE, 24
    longer = max(rows, columns)
    return max(12, TILE * columns // longer), max(12, TILE * rows // longer)


def _grey(pixels: np.ndarray) -> np.ndarray:
    """[y,x] or [y,x,3] of any range as uint8 [y,x,3]."""
    low, high = float(pixels.min()), float(pixels.max())
    levels = (255 * (pixels - low) / max(high - low, 1e-12)).round().astype(np.uint8)
    return np.repeat(levels[..., None], 3, 2) if levels.ndim == 2 else levels


def _put(
    sheet: "Image",
    pixels: np.ndarray,
    corner: tuple[int, int],
    size: tuple[int, int],
    framed: tuple[int, tuple[int, int]] | None,
) -> None:
    """Paste a tile; `framed` is a token and its grid."""
    from PIL import Image, ImageDraw

    tile = Image.fromarray(pixels.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
    if framed is not None:
        token, (rows, columns) = framed
        y, x = divmod(token, columns)
        box = (x * size[0] / columns, y * size[1] / rows, (x + 1) * size[0] / columns - 1, (y + 1) * size[1] / rows - 1)
        ImageDraw.Draw(tile).rectangle(box, outline=FRAME, width=2)
    sheet.paste(tile, corner)
