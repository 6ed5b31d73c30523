"""A page that needs nothing but itself: plain HTML with its pictures inside."""

import base64
import html
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dit_shd.inspection import Cost
from dit_shd.results import write_text

LOWER_IS_BETTER = ("FD", "FID", "sFID", "sFD", "KID")

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


@dataclass(frozen=True)
class Row:
    """One model of a table of figures."""

    name: str
    cost: Cost | None
    figures: dict[str, float]
    """By exact name, as FD(digits)."""
    spread: dict[str, float] = field(default_factory=dict)
    """Standard deviations over several files of samples, where there are any."""


def write_page(out: Path, title: str, body: Sequence[str]) -> None:
    """Write the page whole or not at all."""
    head = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>\n<body>\n"
    )
    write_text(out, head + "\n".join(body) + "\n</body></html>\n")


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
    """Points [n, 2] before others, as SVG that follows the page's colours; those not `inside` [n] in orange."""
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
    """Something that scrolls sideways on a narrow screen."""
    return f'<div class="wide">{inner}</div>'


def side_by_side(figures: Sequence[str]) -> str:
    return f'<div class="row">{"".join(figures)}</div>'


def table_html(
    headings: Sequence[tuple[str, str]],
    rows: Sequence[Sequence[str]],
    bold: Sequence[int] = (),
    tinted: int = 0,
) -> str:
    """A table; headings are (name, what it is in small letters).

    Args:
        rows: texts, escaped here. tinted: the row that stands out.
        bold: for each column the row whose cell is bold, -1 for none.
    """
    heads = "".join(f"<th>{html.escape(n)}<small>{html.escape(words)}</small></th>" for n, words in headings)
    lines = []
    for r, row in enumerate(rows):
        cells = [html.escape(text) for text in row]
        for column, best in enumerate(bold):
            if best == r:
                cells[column] = f"<b>{cells[column]}</b>"
        css = ' class="tinted"' if r == tinted else ""
        lines.append(f"<tr{css}>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return wide(f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table>")


def figures_table(rows: Sequence[Row]) -> tuple[list[tuple[str, str]], list[list[str]], list[int]]:
    """Headings, cells and best student of a table of figures whose first row is the teacher."""
    shared = set.intersection(*(set(row.figures) for row in rows))
    names = [name for name in rows[0].figures if name in shared and not name.endswith(" std")]
    headings = [
        ("model", ""),
        ("heads", ""),
        ("parameters", "M"),
        ("GFLOPs", "one image"),
        ("latency", "ms per image"),
        *((name, "lower is better" if lower_is_better(name) else "higher is better") for name in names),
    ]
    cells, best = [], [-1] * 5
    for row in rows:
        c = row.cost
        costs = ["", "", "", ""]
        if c is not None:
            costs = [str(c.heads), f"{c.parameters / 1e6:.2f}", f"{c.flops / 1e9:.3f}", f"{c.latency_ms:.2f}"]
        cells.append([row.name, *costs, *(_with_spread(row, name) for name in names)])
    for name in names:
        values = [row.figures[name] for row in rows[1:]]
        winner = min(values) if lower_is_better(name) else max(values)
        tie = len({number(value) for value in values}) < len(values)
        best.append(-1 if tie else 1 + values.index(winner))
    return headings, cells, best


def _with_spread(row: Row, name: str) -> str:
    spread = f" ± {number(row.spread[name])}" if name in row.spread else ""
    return number(row.figures[name]) + spread


def plain_table(headings: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]]) -> str:
    """The same table as aligned text."""
    names = [name for name, _ in headings]
    widths = [max(len(name), *(len(row[i]) for row in rows)) for i, name in enumerate(names)]

    def line(cells: Sequence[str]) -> str:
        aligned = [f"{cells[0]:<{widths[0]}}", *(f"{cell:>{w}}" for cell, w in zip(cells[1:], widths[1:]))]
        return "  ".join(aligned)

    return "\n".join([line(names), *map(line, rows)])


def facts(pairs: Mapping[str, str]) -> str:
    """Names and values, one below the other."""
    items = "".join(f"<dt>{html.escape(k)}</dt><dd><code>{html.escape(v)}</code></dd>" for k, v in pairs.items())
    return f"<dl>{items}</dl>"


def command() -> str:
    """The command line that is running, for the record."""
    name = Path(sys.argv[0]).name
    return shlex.join(["dit-shd" if name in ("dit-shd", "__main__.py") else name, *sys.argv[1:]])


def lower_is_better(name: str) -> bool:
    return name.partition("(")[0] in LOWER_IS_BETTER


def number(value: float) -> str:
    """Two decimals; three below one, four below a tenth."""
    return f"{value:.{2 + (abs(value) < 1) + (abs(value) < 0.1)}f}"


def _data(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
