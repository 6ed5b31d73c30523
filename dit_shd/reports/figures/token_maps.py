"""Attention maps of single heads over the tokens of a text, and alpha by layer, as SVG in a page's colours."""

import base64
import html
import io
from collections.abc import Sequence

import numpy as np

from dit_shd.analysis.survey import LayerMaps, LayerSurvey

CELL = 9
"""Side of a map's cell in the picture, in its units."""
MARGIN = 56
"""Room for the tokens' texts at the left and the top."""
LABEL = 8
"""Size of a label's letters."""
SHOWN_LETTERS = 10
"""Of a token's text."""
ACCENT = (217, 130, 43)
"""Of full attention; less of it lets the page shine through."""


def token_maps(layer: LayerMaps, heads: Sequence[int], labels: Sequence[str]) -> list[str]:
    """A map [n,n] of each head, as wide as its place: query tokens down, key tokens across, one scale (square root).

    Args:
        layer: Its rows are those of all tokens.
        heads: Their numbers, from 0.
        labels: The text of each token [n].
    """
    maps = layer.rows.transpose(1, 0, 2)[list(heads)]  # [heads,n,m]
    words = [_legible(label) for label in labels]
    figures = []
    for each, head in zip(maps, heads):
        panel, side = heat_panel(each, float(maps.max()), words, f"head {head}")
        figures.append(_svg(panel, side, side, f"attention map of {layer.token_count} tokens, head {head}", "100%"))
    return figures


def similarity_panels(layers: Sequence[LayerSurvey], titles: Sequence[str]) -> str:
    """The cosine [h,h] of every two heads' maps, a panel for each layer.

    Args:
        layers: Of one model.
        titles: Of the panels.
    """
    panels = []
    for layer, title in zip(layers, titles):
        low = float(layer.cosines.min())
        shares = (layer.cosines - low) / max(1 - low, 1e-9)
        panels.append(heat_panel(shares**2, 1.0, [str(head) for head in range(layer.heads)], title))
    return beside(panels, "similarity of heads by layer")


def heat_panel(values: np.ndarray, high: float, labels: Sequence[str], title: str) -> tuple[str, int]:
    """A matrix [n,n] with its labels, and its side.

    Args:
        values: From 0 to `high`; the colour goes by their square root.
        high: The value of the full colour.
        labels: Of rows and columns [n].
        title: Above it.
    """
    side = CELL * len(values)
    image = f'<image href="{_png(values / max(high, 1e-12))}" x="{MARGIN}" y="{MARGIN}" width="{side}" height="{side}"'
    parts = [f'{image} style="image-rendering: pixelated"/>']
    parts.append(f'<rect x="{MARGIN}" y="{MARGIN}" width="{side}" height="{side}" fill="none" stroke="currentColor"/>')
    for i, label in enumerate(labels):
        at, text = MARGIN + CELL * i + CELL - 2, html.escape(label)
        parts.append(f'<text x="{MARGIN - 3}" y="{at}" text-anchor="end" font-size="{LABEL}">{text}</text>')
        parts.append(f'<text transform="translate({at} {MARGIN - 3}) rotate(-90)" font-size="{LABEL}">{text}</text>')
    parts.append(f'<text x="0" y="10" font-size="11">{html.escape(title)}</text>')
    return "".join(parts), side + MARGIN


def beside(panels: Sequence[tuple[str, int]], words: str) -> str:
    """Panels in rows of three, as one picture.

    Args:
        panels: Each with its side.
        words: For who cannot see it.
    """
    step = max(side for _, side in panels) + CELL
    places = [(step * (i % 3), step * (i // 3)) for i in range(len(panels))]
    drawn = [f'<g transform="translate({x} {y})">{panel}</g>' for (panel, _), (x, y) in zip(panels, places)]
    wide, high = step * min(len(panels), 3), step * -(-len(panels) // 3)
    return _svg("".join(drawn), wide, high, words)


def alpha_by_layer_figure(layers: Sequence[LayerSurvey]) -> str:
    """Mean alpha of each merge of a layer, with the standard deviation over samples; dashed: a half.

    Args:
        layers: With at least one merge each.
    """
    step, high, left = 46, 180, 30
    drawn = [
        f'<text x="{left - 4}" y="{high * (1 - a) + 13}" text-anchor="end" font-size="9">{a:g}</text>'
        f'<line x1="{left}" x2="{left + step * len(layers)}" y1="{high * (1 - a) + 10}" y2="{high * (1 - a) + 10}" '
        f'stroke="currentColor" opacity=".4" stroke-dasharray="{"4 3" if a == 0.5 else "0"}"/>'
        for a in (0.0, 0.5, 1.0)
    ]
    for x, layer in enumerate(layers):
        merges = layer.alpha.shape[2]
        for merge in range(merges):
            at = left + step * (x + 0.15 + 0.7 * (merge + 0.5) / merges)
            mean, spread = (float(f(layer.alpha[..., merge])) for f in (np.mean, np.std))
            ends = [high * (1 - min(max(value, 0), 1)) + 10 for value in (mean - spread, mean, mean + spread)]
            words = f"{layer.layer}, merge {merge}: {mean:.2f}, deviation {spread:.2f}"
            drawn.append(
                f'<g><title>{html.escape(words)}</title><line x1="{at:.1f}" x2="{at:.1f}" y1="{ends[0]:.1f}" '
                f'y2="{ends[2]:.1f}" stroke="currentColor"/><circle cx="{at:.1f}" cy="{ends[1]:.1f}" r="2.5" '
                f'fill="rgb{ACCENT}"/></g>'
            )
        drawn.append(
            f'<text x="{left + step * (x + 0.5)}" y="{high + 26}" text-anchor="middle" font-size="9">{x}</text>'
        )
    return _svg("".join(drawn), left + step * len(layers) + 8, high + 34, "alpha by layer")


def _svg(content: str, wide: float, high: float, words: str, width: str = "") -> str:
    width = width or f"{1.5 * wide:g}px"
    return (
        f'<svg viewBox="0 0 {wide:g} {high:g}" role="img" aria-label="{html.escape(words, quote=True)}" '
        f'style="width: {width}; max-width: none; height: auto; background: none" fill="currentColor">'
        f"{content}</svg>"
    )


def _png(shares: np.ndarray) -> str:
    """Shares [y,x] as the opacity of one colour, a pixel each."""
    from PIL import Image

    opacity = (255 * np.sqrt(shares.clip(0, 1))).round()
    pixels = np.concatenate([np.broadcast_to(ACCENT, (*shares.shape, 3)), opacity[..., None]], axis=2)
    stream = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8), "RGBA").save(stream, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def _legible(label: str) -> str:
    """A token as short text that shows its spaces and lines."""
    shown = repr(label)[1:-1].replace(" ", "·")
    return shown if len(shown) <= SHOWN_LETTERS else shown[: SHOWN_LETTERS - 1] + "…"
