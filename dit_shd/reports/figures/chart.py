"""Charts as SVG: lines, bands, dots, cells and pictures on axes, in the page's colours; pointer and keys read numbers.

A chart is small (SIZE); a page sets many of them side by side and wraps them, so that text keeps its size on a narrow
screen. Colours are classes of static/page.css: s0 to s5 for series, sink for the ink.
"""

import html
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dit_shd.reports.html import charts, figure, style, wide

SIZE, SMALL = (360, 236), (290, 200)
"""Width and height of a chart."""
LEFT, RIGHT, TOP, BOTTOM = 46, 18, 24, 36
"""Margins for labels."""
LETTER = 6.4
"""Pixels of a letter."""
WHOLE = 500
"""Width from which a chart takes a row of its own, and scrolls on a narrow screen."""
LARGEST = 1e300
"""Of an axis: a sum of two is finite still."""
SERIES = 6
"""Number of colours; series beyond get dashes."""


@dataclass(frozen=True)
class Axis:
    """A scale with its label.

    Args:
        label: Below or beside the axis.
        low: The value at its beginning.
        high: The value at its end.
        log: Whether it is logarithmic.
        names: Texts of the values 0, 1, ..., in place of numbers.
    """

    label: str
    low: float
    high: float
    log: bool = False
    names: Sequence[str] | None = None

    @classmethod
    def around(cls, label: str, values: Iterable[float], log: bool = False, pad: float = 0.06) -> "Axis":
        """An axis that holds all finite values, with room at both ends; logarithmic only if all are above 0."""
        numbers = [float(value) for value in values if math.isfinite(value)] or [0.0, 1.0]
        low, high = max(min(numbers), -LARGEST), min(max(numbers), LARGEST)
        if log and low > 1 / LARGEST:
            room = max((high / low) ** pad, 1.02)
            return cls(label, low / room, high * room, log=True)
        room = pad * (high - low) or abs(high) * 0.1 or 1.0
        return cls(label, low - room, high + room)

    @classmethod
    def of(cls, label: str, names: Sequence[str]) -> "Axis":
        """An axis of named places 0, 1, ..."""
        return cls(label, -0.5, len(names) - 0.5, names=names)

    def share(self, value: float) -> float:
        """The place of a value: 0 at the beginning of the axis, 1 at its end."""
        if self.log:
            return math.log(max(value, 1e-300) / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, count: int = 5) -> list[float]:
        """Round values, about `count` of them."""
        if self.names is not None:
            every = -(-len(self.names) // 12)
            return [float(i) for i in range(0, len(self.names), every)]
        if self.log and self.high / self.low > 3:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for factors in ((1, 2, 5), (1, 3), (1,)):
                ticks = [f * 10.0**d for d in decades for f in factors if self.low <= f * 10.0**d <= self.high]
                if len(ticks) <= count + 2:
                    return ticks
            return ticks[:: -(-len(ticks) // count)]
        low, high = sorted((self.low, self.high))
        rough = (high - low) / count
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * f for f in (1, 2, 2.5, 5, 10) if power * f >= rough * 0.999)
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        return [step * i for i in range(first, last + 1)]

    def text(self, value: float) -> str:
        """The text of a tick."""
        if self.names is not None:
            return self.names[round(value)]
        return short(value, self._digits)

    @property
    def _digits(self) -> int:
        """As many as tell two ticks apart, at least four."""
        step, most = abs(self.high - self.low) / 5, max(abs(self.low), abs(self.high))
        return 4 if self.log or not step else min(max(4, math.ceil(math.log10(most / step)) + 2), 15)


def short(value: float, digits: int = 4) -> str:
    """A number in few letters."""
    if abs(value) >= 10_000:
        for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
            if abs(value) >= size:
                return f"{value / size:.{digits}g}{letter}"
    mantissa, _, power = f"{value:.{digits - 1}e}".partition("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(power)}" if 0 < abs(value) < 1e-3 else f"{value:.{digits}g}"


def series_css(number: int) -> str:
    """The classes of a series: colour, and a dash from the seventh on."""
    return f"s{number % SERIES}" + (f" d{number // SERIES % 3}" if number >= SERIES else "")


class Chart:
    """A chart that marks are added to.

    Args:
        title: Above it, and its name for a screen reader.
        x: The axis below.
        y: The axis on the left.
        size: Width and height.
        square: Whether the area of the axes is a square.
    """

    def __init__(self, title: str, x: Axis, y: Axis, size: tuple[int, int] = SIZE, square: bool = False) -> None:
        self.title, self.x, self.y, self.size = title, x, y, size
        if square:
            self.size = (size[0], size[0] - LEFT - RIGHT + TOP + BOTTOM)
        self._marks: list[str] = []
        self._ends = (LEFT, self.size[0] - RIGHT), (self.size[1] - BOTTOM, TOP)

    def place(self, x: float, y: float) -> tuple[float, float]:
        """The pixels of a point."""
        (left, right), (bottom, top) = self._ends
        return left + self.x.share(x) * (right - left), bottom + self.y.share(y) * (top - bottom)

    def line(self, xs: Iterable[float], ys: Iterable[float], css: str, name: str = "") -> None:
        """A line; with a name its points are read by pointer and keys."""
        pairs = ((x, y) for x, y in zip(xs, ys) if math.isfinite(y) and not (self.y.log and y <= 0))
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in (self.place(x, y) for x, y in pairs))
        named = f' data-name="{_quoted(name)}"' if name else ""
        self._marks.append(f'<polyline class="{css}" points="{points}"{named}/>')

    def band(self, xs: Sequence[float], low: Sequence[float], high: Sequence[float], css: str) -> None:
        """The area between two lines."""
        around = [*zip(xs, low), *reversed([*zip(xs, high)])]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in (self.place(x, self._inside(y)) for x, y in around))
        self._marks.append(f'<polygon class="band {css}" points="{points}"/>')

    def area(self, xs: Sequence[float], ys: Sequence[float], css: str) -> None:
        """A filled outline."""
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in (self.place(x, y) for x, y in zip(xs, ys)))
        self._marks.append(f'<polygon class="area {css}" points="{points}"/>')

    def dot(self, x: float, y: float, css: str, words: str, radius: float = 4, hollow: bool = False) -> None:
        """A dot with its words."""
        cx, cy = self.place(x, y)
        kind = "hollow" if hollow else "dot"
        self._marks.append(
            f'<circle class="{kind} {css}" cx="{cx:.1f}" cy="{cy:.1f}" r="{radius:g}" data-tip="{_quoted(words)}"/>'
        )

    def behind(self, x: float, y: float) -> None:
        """A pale dot without words."""
        cx, cy = self.place(x, y)
        self._marks.append(f'<circle class="behind" cx="{cx:.1f}" cy="{cy:.1f}" r="2"/>')

    def stem(self, x: float, low: float, high: float, css: str) -> None:
        """A line upwards, as of an interval."""
        (cx, bottom), (_, top) = self.place(x, self._inside(low)), self.place(x, self._inside(high))
        self._marks.append(f'<line class="stem {css}" x1="{cx:.1f}" x2="{cx:.1f}" y1="{bottom:.1f}" y2="{top:.1f}"/>')

    def tick(self, x: float, y: float, css: str, high: float = 14) -> None:
        """A short line upwards, centred on a point."""
        cx, cy = self.place(x, y)
        half = high / 2
        self._marks.append(
            f'<line class="stem {css}" x1="{cx:.1f}" x2="{cx:.1f}" y1="{cy - half:.1f}" y2="{cy + half:.1f}"/>'
        )

    def box(
        self, x: tuple[float, float], y: tuple[float, float], css: str = "", fill: str = "", words: str = ""
    ) -> None:
        """A rectangle between two values of each axis."""
        (x1, y1), (x2, y2) = self.place(x[0], y[0]), self.place(x[1], y[1])
        colour = f' fill="{fill}"' if fill else ""
        tip = f' data-tip="{_quoted(words)}"' if words else ""
        self._marks.append(
            f'<rect class="{css}" x="{min(x1, x2):.1f}" y="{min(y1, y2):.1f}" width="{abs(x2 - x1):.1f}" '
            f'height="{abs(y2 - y1):.1f}"{colour}{tip}/>'
        )

    def image(self, source: str) -> None:
        """A picture, as a data URI, over the whole area of the axes."""
        (left, right), (bottom, top) = self._ends
        self._marks.append(
            f'<image x="{left}" y="{top}" width="{right - left}" height="{bottom - top}" preserveAspectRatio="none" '
            f'style="image-rendering: pixelated" href="{source}"/>'
        )

    def rule(self, y: float, words: str) -> None:
        """A dashed line across, with its words."""
        (left, right), _ = self._ends
        _, cy = self.place(self.x.low, y)
        self._marks.append(f'<line class="rule" x1="{left}" x2="{right}" y1="{cy:.1f}" y2="{cy:.1f}"/>')
        self._marks.append(f'<text x="{right}" y="{cy - 4:.1f}" text-anchor="end">{html.escape(words)}</text>')

    def words(
        self, x: float, y: float, text: str, css: str = "name", anchor: str = "start", shift: float = 0, up: float = 0
    ) -> None:
        """Text at a point, moved by `shift` pixels to the right and `up`; kept inside the chart."""
        cx, cy = self.place(x, y)
        cy -= up
        if anchor == "start" and cx + shift + LETTER * len(text) > self.size[0]:
            room = int((cx - shift) / LETTER)
            anchor, shift, text = "end", -shift, text if len(text) <= room else text[: max(room - 1, 0)] + "…"
        place = f'x="{cx + shift:.1f}" y="{cy + 4:.1f}" text-anchor="{anchor}"'
        self._marks.append(f'<text class="{css}" {place}>{html.escape(text)}</text>')

    def coloured_text(self, x: float, y: float, text: str, fill: str) -> None:
        """Text centred at a point in a colour of its own, on a cell."""
        cx, cy = self.place(x, y)
        self._marks.append(
            f'<text x="{cx:.1f}" y="{cy + 3:.1f}" text-anchor="middle" style="fill: {fill}; '
            f'font-size: 9px">{html.escape(text)}</text>'
        )

    def mark(self, x: float, y: float) -> None:
        """A white dot with a black edge, legible on any cell."""
        cx, cy = self.place(x, y)
        self._marks.append(f'<circle class="mark" cx="{cx:.1f}" cy="{cy:.1f}" r="3"/>')

    def svg(self, inside: str = "") -> str:
        """The chart; `inside` are attributes of its element."""
        width, height = self.size
        y = self.y.label or self.title
        name = _quoted(f"{self.title}: {y} against {self.x.label}; arrow keys read its numbers")
        return (
            f'<svg class="chart" viewBox="0 0 {width} {height}" role="img" tabindex="0" aria-label="{name}" '
            f'data-across="{_quoted(self.x.label)}" data-x="{self._scale(0)}" data-y="{self._scale(1)}"{inside}>'
            f"{self._frame()}{''.join(self._marks)}</svg>"
        )

    def _inside(self, y: float) -> float:
        low, high = sorted((self.y.low, self.y.high))
        return min(max(y, low), high)

    def _scale(self, which: int) -> str:
        axis, (first, last) = (self.x, self.y)[which], self._ends[which]
        return f"{axis.low:.8g} {axis.high:.8g} {first:g} {last:g} {int(axis.log)}"

    def _ticks_across(self) -> list[float]:
        """Those of the axis below; of names no more than have room beside each other."""
        ticks, names, (left, right) = self.x.ticks(), self.x.names, self._ends[0]
        if not names:
            return ticks
        room, widest = (right - left) / len(names), LETTER * (max(map(len, names)) + 1)
        return [float(i) for i in range(0, len(names), max(-(-len(names) // len(ticks)), math.ceil(widest / room)))]

    def _frame(self) -> str:
        (left, right), (bottom, top) = self._ends
        letters = int((self.size[0] - left - 24) / LETTER)
        title = self.title if len(self.title) <= letters else "…" + self.title[1 - letters :]
        parts = [f'<text class="title" x="{left}" y="13">{html.escape(title)}</text>']
        for tick in self.y.ticks():
            _, y = self.place(self.x.low, tick)
            if self.y.names is None:
                parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
            text = html.escape(self.y.text(tick))
            parts.append(f'<text x="{left - 5}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
        for tick in self._ticks_across():
            x, _ = self.place(tick, self.y.low)
            text = html.escape(self.x.text(tick))
            parts.append(f'<text x="{x:.1f}" y="{bottom + 14}" text-anchor="middle">{text}</text>')
        middle, centre = (top + bottom) / 2, (left + right) / 2
        parts += [
            f'<line class="axis" x1="{left}" x2="{right}" y1="{bottom}" y2="{bottom}"/>',
            f'<text x="{centre:g}" y="{bottom + 30}" text-anchor="middle">{html.escape(self.x.label)}</text>',
        ]
        if self.y.label:
            label = html.escape(self.y.label)
            parts.append(f'<text transform="translate(11 {middle:g}) rotate(-90)" text-anchor="middle">{label}</text>')
        return "".join(parts)


def chart_row(drawn: Sequence[Chart], small: bool = False) -> str:
    """Charts as figures that can be enlarged, in as many columns as fit."""
    figures = []
    for chart in drawn:
        whole = chart.size[0] > WHOLE
        figures.append(
            figure(wide(chart.svg(), chart.title) if whole else chart.svg(), chart.title, css="whole" * whole)
        )
    return charts(figures, small)


def svg_file(charts: Sequence[Chart], columns: int = 3) -> str:
    """Charts in one SVG that stands alone, on white, in the colours of the light page."""
    width, height = (max(chart.size[i] for chart in charts) for i in range(2))
    columns = min(columns, len(charts))
    rows = -(-len(charts) // columns)
    inner = []
    for i, chart in enumerate(charts):
        place = (
            f' x="{i % columns * width}" y="{i // columns * height}" width="{chart.size[0]}" height="{chart.size[1]}"'
        )
        inner.append(chart.svg(place).replace(' tabindex="0"', ""))
    css = re.sub(r"@media[^{]*\{(?:[^{}]*\{[^{}]*\})*[^{}]*\}", "", style()).replace("light dark", "light")
    css += f"svg.chart {{ width: {width}px; height: {height}px; }}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-10 -10 {columns * width + 20} {rows * height + 20}" '
        f'width="{columns * width + 20}"><style>{css}</style>'
        f'<rect x="-10" y="-10" width="100%" height="100%" fill="#fff"/>{"".join(inner)}</svg>\n'
    )


def _quoted(text: str) -> str:
    return html.escape(text, quote=True)
