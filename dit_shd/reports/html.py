"""Self-contained pages: plain HTML with its pictures inside."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dit_shd.core.files import write_text

STYLE = """
:root { color-scheme: light dark; --ink: #222; --quiet: #666; --line: #ddd; --paper: #fff; --tint: #f4f5f7; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e4e4; --quiet: #9a9a9a; --line: #3a3a3a; --paper: #161718; --tint: #202224; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.2rem 4rem; max-width: 76rem;
  background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .8rem; }
h2 { font-size: 1.2rem; margin: 2.8rem 0 .5rem; }
p { max-width: 48rem; margin: .5rem 0; }
.lead { font-size: 1.1rem; }
.quiet, figcaption, footer { color: var(--quiet); font-size: .9rem; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .95rem; }
th, td { padding: .45rem .8rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--quiet); font-size: .85rem; vertical-align: bottom; }
th small { display: block; font-weight: 400; }
th:first-child, td:first-child { text-align: left; padding-left: .3rem; }
tr.tinted td { background: var(--tint); }
td b { font-weight: 700; }
figure { margin: 0; }
figure img { display: block; max-width: 100%; height: auto; }
.scroll img { max-width: none; }
.wide figure.scroll img { width: 100%; min-width: 54rem; }
.row { display: flex; flex-wrap: wrap; gap: 1.4rem; }
.row figure { flex: 1 1 18rem; max-width: 26rem; }
.row img { width: 100%; border-radius: 3px; }
figcaption { margin-bottom: .35rem; }
footer { margin-top: 3.5rem; border-top: 1px solid var(--line); padding-top: 1rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.2rem; margin: .6rem 0; }
dt { font-weight: 600; } dd { margin: 0; overflow-wrap: anywhere; }
svg { width: 100%; height: auto; background: var(--tint); border-radius: 3px; }
.behind { fill: var(--quiet); opacity: .25; } .inside { fill: var(--ink); } .outside { fill: #d9822b; }
code { font: .85rem/1.4 ui-monospace, "SF Mono", Menlo, Consolas, monospace; }
"""


def write_page(out: Path, title: str, body: Sequence[str]) -> None:
    """Write the page atomically.

    Args:
        out: The file.
        title: Its title.
        body: HTML of its parts.

    Raises:
        UserError: It could not be written.
    """
    head = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n<body>\n"
    )
    write_text(out, head + "\n".join(body) + "\n</body></html>\n", "make room or choose another out=FILE")


def section(title: str, *parts: str) -> str:
    """A heading and ready-made HTML below it."""
    return f"<section><h2>{html.escape(title)}</h2>\n" + "\n".join(parts) + "</section>"


def paragraph(text: str, css: str = "") -> str:
    """Plain text, escaped."""
    return f'<p class="{css}">{html.escape(text)}</p>' if css else f"<p>{html.escape(text)}</p>"


def picture(image: bytes | tuple[bytes, bytes], alt: str, caption: str = "", css: str = "") -> str:
    """A figure from PNG bytes, or from a pair for light and dark pages."""
    light, dark = image if isinstance(image, tuple) else (image, None)
    source = ""
    if dark is not None:
        source = f'<source media="(prefers-color-scheme: dark)" srcset="{_data(dark)}">'
    words = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
    return (
        f'<figure class="{css}">{words}<picture>{source}'
        f'<img src="{_data(light)}" alt="{html.escape(alt, quote=True)}"></picture></figure>'
    )


def scatter(behind: np.ndarray, points: np.ndarray, inside: np.ndarray, title: str) -> str:
    """Points [n,2] in front of others, as SVG in the page's colours; those not `inside` [n] in orange."""
    everything = np.concatenate([behind, points])
    low, high = np.percentile(everything, 0.5, axis=0), np.percentile(everything, 99.5, axis=0)
    width, height = 400, 300
    scale = np.array([width, height]) / np.maximum(high - low, 1e-12)

    def dots(rows: np.ndarray, css: str) -> str:
        places = np.clip((rows - low) * scale, 0, (width, height)).round(1)
        return f'<g class="{css}">' + "".join(f'<circle cx="{x:g}" cy="{y:g}" r="2"/>' for x, y in places) + "</g>"

    drawn = dots(behind, "behind") + dots(points[inside], "inside") + dots(points[~inside], "outside")
    label = html.escape(title, quote=True)
    return f'<svg viewBox="-4 -4 {width + 8} {height + 8}" role="img" aria-label="{label}">{drawn}</svg>'


def wide(inner: str) -> str:
    """HTML that scrolls sideways on a narrow screen."""
    return f'<div class="wide">{inner}</div>'


def side_by_side(figures: Sequence[str]) -> str:
    """Figures in a row that wraps on a narrow screen."""
    return f'<div class="row">{"".join(figures)}</div>'


def _data(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
