"""Attention maps of single heads over the tokens of a text, as an SVG that stands alone: a figure for a paper."""

import html
from collections.abc import Sequence

import numpy as np

from dit_shd.analysis.survey import LayerMaps
from dit_shd.reports.html import data_uri, png

CELL = 9
"""Side of a map's cell in the picture, in its units."""
MARGIN = 64
"""Room for the tokens' texts at the left and the top."""
SHOWN_LETTERS = 10
"""Of a token's text."""
ACCENT = (217, 130, 43)
"""Of full attention; less of it lets the paper shine through."""


def token_maps_figure(layer: LayerMaps, heads: Sequence[int], labels: Sequence[str]) -> str:
    """A map [n,n] of each head: query tokens down, key tokens across, one scale (square root) for all.

    Args:
        layer: Its rows are those of all tokens.
        heads: Their numbers, from 0.
        labels: The text of each token [n].
    """
    maps = layer.rows.transpose(1, 0, 2)[list(heads)]  # [heads,n,m]
    words = [legible(label) for label in labels]
    panels = [_heat_panel(each, float(maps.max()), words, f"head {head}") for each, head in zip(maps, heads)]
    return _beside(panels, f"attention maps of {layer.token_count} tokens in {len(heads)} heads")


def _heat_panel(values: np.ndarray, high: float, labels: Sequence[str], title: str) -> tuple[str, int]:
    """A matrix [n,n] with its labels, and its side.

    Args:
        values: From 0 to `high`; the colour goes by their square root.
        high: The value of the full colour.
        labels: The labels of rows and columns [n].
        title: Above it.
    """
    side = CELL * len(values)
    image = f'<image href="{_png(values / max(high, 1e-12))}" x="{MARGIN}" y="{MARGIN}" width="{side}" height="{side}"'
    parts = [f'{image} style="image-rendering: pixelated"/>']
    parts.append(f'<rect x="{MARGIN}" y="{MARGIN}" width="{side}" height="{side}" fill="none" stroke="currentColor"/>')
    for i, label in enumerate(labels):
        at, text = MARGIN + CELL * i + CELL - 2, html.escape(label)
        parts.append(f'<text x="{MARGIN - 3}" y="{at}" text-anchor="end" font-size="7">{text}</text>')
        parts.append(f'<text transform="translate({at} {MARGIN - 3}) rotate(-90)" font-size="7">{text}</text>')
    parts.append(f'<text x="0" y="10" font-size="11">{html.escape(title)}</text>')
    return "".join(parts), side + MARGIN


def _beside(panels: Sequence[tuple[str, int]], words: str) -> str:
    """Panels, each with its side, in rows of three as one picture; `words` are for who cannot see it."""
    step = max(side for _, side in panels) + CELL
    places = [(step * (i % 3), step * (i // 3)) for i in range(len(panels))]
    drawn = [f'<g transform="translate({x} {y})">{panel}</g>' for (panel, _), (x, y) in zip(panels, places)]
    wide, high = step * min(len(panels), 3), step * -(-len(panels) // 3)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide:g} {high:g}" role="img" '
        f'aria-label="{html.escape(words, quote=True)}" style="width: {1.5 * wide:g}px" fill="currentColor">'
        f"{''.join(drawn)}</svg>"
    )


def _png(shares: np.ndarray) -> str:
    """Shares [y,x] as the opacity of one colour, a pixel each."""
    from PIL import Image

    opacity = (255 * np.sqrt(shares.clip(0, 1))).round()
    pixels = np.concatenate([np.broadcast_to(ACCENT, (*shares.shape, 3)), opacity[..., None]], axis=2)
    return data_uri(png(Image.fromarray(pixels.astype(np.uint8), "RGBA")))


def legible(label: str) -> str:
    """A token as short text that shows its spaces and lines."""
    shown = repr(label)[1:-1].replace(" ", "·")
    return shown if len(shown) <= SHOWN_LETTERS else shown[: SHOWN_LETTERS - 1] + "…"
