"""Tables of figures, as text and as HTML."""

import html
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from unicodedata import combining, east_asian_width

from dit_shd.evaluation.results import is_small
from dit_shd.profiling.cost import Cost
from dit_shd.reports.html import Link, linked, wide

LOWER_IS_BETTER = ("FD", "FID", "sFID", "sFD", "KID", "CMMD", "LPIPS", "MSE", "loss", "perplexity")
HIGHER_IS_BETTER = (
    *("IS", "precision", "recall", "density", "coverage", "CLIP score", "as asked"),
    *("top1", "top5", "accuracy", "rouge1", "rouge2", "rougeL", "PSNR", "SSIM"),
)
OF_AVERAGE = re.compile(r"_ema_[\d.e-]+$")
"""The end of a training figure's name, of the student whose weights are an average."""
COSTS = ("heads", ""), ("parameters", "M"), ("GFLOPs", "one image"), ("latency", "ms per image")
"""Headings of the columns of cost."""
COSTS_EXPLAINED = (
    "A multiply-add counts as two FLOPs; sampling with guidance takes two forward passes a step. Latency: median of "
    "several passes at batch 16 on one CPU thread of this machine."
)
HUGE = 1e7
"""A figure above it, as of a model that has diverged, is told by its size alone."""
LONG = 28
"""Letters from which the cells of a column break into lines."""


@dataclass(frozen=True)
class Row:
    """One model of a table of figures."""

    name: str
    cost: Cost | None
    figures: dict[str, float]
    """By exact name, as FD(digits)."""
    spread: dict[str, float] = field(default_factory=dict)
    """Standard deviations over several files of samples; empty for one file."""


def table_html(
    headings: Sequence[tuple[str, str]],
    rows: Sequence[Sequence[str]],
    bold: Sequence[int] = (),
    tinted: int = 0,
    scale: int = -1,
    what: str = "table",
) -> str:
    """A table that can be sorted by each of its columns, and scrolls with its first column in place.

    Args:
        headings: (name, explanation in small letters) of each column.
        rows: Texts, escaped here.
        bold: For each column the row whose cell is bold, -1 for none.
        tinted: The row with a tinted background, which stays where it is, -1 for none.
        scale: The row that the others are compared with, as of real images, which stays where it is, -1 for none.
        what: Its name for a screen reader.
    """
    heads = "".join(
        f'<th scope="col"><button type="button">{html.escape(name)}</button><small>{html.escape(words)}</small></th>'
        for name, words in headings
    )
    long = [max((len(row[i]) for row in rows), default=0) > LONG for i in range(len(headings))]
    lines = []
    for r, row in enumerate(rows):
        cells = [html.escape(text) for text in row]
        for column, best in enumerate(bold):
            if best == r:
                cells[column] = f"<b>{cells[column]}</b>"
        css = ' class="tinted"' if r == tinted else ' class="scale"' if r == scale else ""
        opened = ['<td class="words">' if words else "<td>" for words in long]
        lines.append(f"<tr{css}>" + "".join(f"{td}{cell}</td>" for td, cell in zip(opened, cells)) + "</tr>")
    return wide(f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(lines)}</tbody></table>", what)


def shared_names(rows: Sequence[Row]) -> list[str]:
    """The figures that all rows have, in the order of the first."""
    shared = set.intersection(*(set(row.figures) for row in rows))
    return [name for name in rows[0].figures if name in shared and not name.endswith(" std")]


def figures_table(rows: Sequence[Row]) -> tuple[list[tuple[str, str]], list[list[str]], list[int]]:
    """Headings, cells and best student (of several) of a table of figures whose first row is the teacher.

    There are no columns of cost where no model has one.
    """
    names = shared_names(rows)
    costed = any(row.cost is not None for row in rows)
    headings = [
        ("model", ""),
        *(COSTS if costed else ()),
        *((name, direction(name)) for name in names),
    ]
    cells = [
        [row.name, *(_cost_cells(row) if costed else ()), *(_with_spread(row, name) for name in names)] for row in rows
    ]
    best = [-1] * (len(headings) - len(names))
    for name in names:
        values = [row.figures[name] for row in rows[1:]]
        winner = min(values, key=lambda value: rank(value, name))
        alone = [number(value) for value in values].count(number(winner)) == 1 < len(values)
        best.append(1 + values.index(winner) if alone and direction(name) else -1)
    return headings, cells, best


def _cost_cells(row: Row) -> list[str]:
    """Heads, parameters, operations and latency; empty where they are not known."""
    c = row.cost
    if c is None:
        return [""] * len(COSTS)
    return [str(c.heads), f"{c.parameters / 1e6:.2f}", f"{c.flops / 1e9:.3f}", f"{c.latency_ms:.2f}"]


def _with_spread(row: Row, name: str) -> str:
    spread = f" ± {number(row.spread[name])}" if name in row.spread else ""
    return number(row.figures[name]) + spread


def plain_table(headings: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]]) -> str:
    """The same table as aligned text; units and the better direction stand behind the names."""
    lines = [
        [name + _behind(words) for name, words in headings],
        *([" ".join(cell.splitlines()) for cell in row] for row in rows),
    ]
    widths = [max(map(_columns, column)) for column in zip(*lines)]

    def line(cells: Sequence[str]) -> str:
        first, *others = ((cell, " " * (width - _columns(cell))) for cell, width in zip(cells, widths))
        return "  ".join(["".join(first), *(room + cell for cell, room in others)])

    return "\n".join(map(line, lines))


def markdown(headings: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]]) -> str:
    """The same table as Markdown."""
    heads = [f"{name} ({words})" if words else name for name, words in headings]
    lines: list[Sequence[str]] = [heads, ["---"] * len(heads), *rows]
    return "\n".join(
        "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def _columns(text: str) -> int:
    """The columns that a text takes in a terminal: letters of East Asia take two, marks above others none."""
    wide = sum(east_asian_width(letter) in "WF" for letter in text)
    return len(text) + wide - sum(combining(letter) > 0 for letter in text)


def _behind(words: str) -> str:
    """The explanation of a column behind its name."""
    arrows = {"lower is better": "↓", "higher is better": "↑"}
    return f" {arrows[words]}" if words in arrows else f" ({words})" if words else ""


def facts(pairs: Mapping[str, str | Link], page: Path, copied: bool = False) -> str:
    """Names and values, one below the other.

    Args:
        pairs: Name -> value.
        page: The page, which links are relative to.
        copied: Whether each value has a button that copies it; a command always has.
    """
    button = '<button class="tool copy" type="button">copy</button>'
    items = []
    for name, value in pairs.items():
        if isinstance(value, Link):
            shown = linked(value, page) if value.file.exists() else f"<code>{html.escape(value.text)}</code>"
        else:
            shown = f"<code>{html.escape(value)}</code>" + (button if copied or name == "command" else "")
        items.append(f"<dt>{html.escape(name)}</dt><dd>{shown}</dd>")
    return f"<dl>{''.join(items)}</dl>"


def lower_is_better(name: str) -> bool:
    """Whether a figure is known to be better the lower it is, as a distance."""
    return _base(name) in LOWER_IS_BETTER


def higher_is_better(name: str) -> bool:
    """Whether a figure is known to be better the higher it is."""
    return _base(name) in HIGHER_IS_BETTER


def _base(name: str) -> str:
    """What a figure is, by its name: `training/top1_ema_0` is a top1, `IS(x) by y` an IS."""
    return OF_AVERAGE.sub("", name.partition("(")[0].rpartition("/")[2].partition(" by ")[0])


def direction(name: str) -> str:
    """Which values of a figure are better, in words; empty of one whose name does not say it, as a user's metric."""
    return "lower is better" if lower_is_better(name) else "higher is better" if higher_is_better(name) else ""


def rank(value: float, name: str) -> tuple[bool, float]:
    """What sorts the values of a figure from the best; NaN, as of a model that has diverged, is the last."""
    return math.isnan(value), value if lower_is_better(name) else -value


def number(value: float) -> str:
    """Two decimals; three below one, four below a tenth, and two digits below a thousandth; three of a huge one."""
    if abs(value) >= HUGE:
        return f"{value:.3g}"
    if is_small(value):
        return f"{value:.{1 - math.floor(math.log10(abs(value)))}f}"
    return f"{value:.{2 + (abs(value) < 1) + (abs(value) < 0.1)}f}"
