"""What became of every call of attention in a forward."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from dit_shd.attention.capture import layer_of
from dit_shd.attention.recording.joint import Layout
from dit_shd.attention.recording.selection import Selection
from dit_shd.attention.recording.site import Site
from dit_shd.attention.recording.sites import Sites

_log = logging.getLogger("dit_shd")

Shape = tuple[int, int, int, int]


@dataclass(frozen=True)
class Line:
    """One layer: the calls of attention of one module."""

    layer: str
    shapes: Mapping[str, Shape]
    """(b, h, n, m) of what was recorded, by its name among the captures."""
    roles: tuple[str, ...]
    """Of its calls: self, cross or unknown, and the order of text and image where one sequence holds both."""
    projections: tuple[str, ...]
    """Where W^O of its first call is, or why it is nowhere."""
    left_out: str
    """Why it, or some call of it, was not recorded; or nothing."""

    def __str__(self) -> str:
        parts = [f"{self.layer}: {', '.join(self.roles)}"]
        for name, (b, h, n, m) in self.shapes.items():
            parts.append(f"recorded as {name}: {b} samples, {h} heads, {n} x {m}")
        if self.shapes:
            parts.append(f"W^O {', '.join(self.projections)}")
        return "; ".join([*parts, f"left out: {self.left_out}"] if self.left_out else parts)


@dataclass(frozen=True)
class Report:
    """Every layer that called attention, in the order in which they ran; print it."""

    lines: tuple[Line, ...]
    silent: tuple[str, ...] = ()
    """Layers in their places that called none, and why."""

    @classmethod
    def of(cls, sites: Sites, shapes: Mapping[str, Shape], selection: Selection) -> "Report":
        """From what is known of a model, and the shapes of what was recorded of it."""
        return cls(
            tuple(_line(site, shapes, selection) for site in sites.values()),
            tuple(f"{name} {what}" for name, what in sites.by_hand.items()),
        )

    def log(self) -> None:
        """Log it, unless the same was logged before, or every layer hands over its captures by itself."""
        if self.lines:
            _log_once(str(self))

    def __str__(self) -> str:
        recorded = sum(len(line.shapes) for line in self.lines)
        calls = sum(len(line.roles) for line in self.lines)
        head = f"{calls} calls of attention in {len(self.lines)} layers, {recorded} captures"
        return "\n".join([head, *(f"  {text}" for text in (*_merged(self.lines), *self.silent))])


def _merged(lines: Sequence[Line]) -> list[str]:
    """Lines as texts; layers that differ only in one number of their names, which counts up, are one."""
    runs: list[list[Line]] = []
    for line in lines:
        run = next((run for run in reversed(runs) if _follows(run[-1], line)), None)
        if run is None:
            runs.append(run := [])
        run.append(line)
    return [_text(run) for run in runs]


def _follows(line: Line, after: Line) -> bool:
    """Whether a line is another's but for one number in names, which is one more: blocks.3.attn after blocks.2.attn."""
    parts, others = line.layer.split("."), after.layer.split(".")
    changed = [(a, b) for a, b in zip(parts, others) if a != b]
    if len(parts) != len(others) or len(changed) != 1 or not all(part.isdecimal() for part in changed[0]):
        return False
    counts_up = int(changed[0][1]) == int(changed[0][0]) + 1
    return counts_up and str(line).replace(line.layer, "") == str(after).replace(after.layer, "")


def _text(run: Sequence[Line]) -> str:
    first, last = run[0], run[-1]
    if len(run) == 1:
        return str(first)
    return str(first).replace(f"{first.layer}:", f"{first.layer} ... {last.layer} ({len(run)} layers):", 1)


@lru_cache(maxsize=64)
def _log_once(text: str) -> None:
    _log.info("%s", text)


def _line(site: Site, shapes: Mapping[str, Shape], selection: Selection) -> Line:
    mine = {name: shape for name, shape in shapes.items() if layer_of(name) == site.name}
    chosen = selection.chosen(Sites({site.name: site})) if selection.layers is None else list(mine)
    wanted = [selection.wants(layout) for layout in site.layouts]
    reason = "" if chosen and mine and all(wanted) else selection.left_out(site)
    first = site.layouts[0] if site.layouts else None
    projections = [] if first is None else [p.name or "the model's own" for p in first.projections if p is not None]
    names = tuple(projections) or ("" if first is None else first.reason,)
    return Line(site.name, mine, tuple(map(_role, site.layouts)), names, reason)


def _role(layout: Layout) -> str:
    return layout.role if layout.order == "plain" else f"{layout.role}, {layout.order}"


def why_empty(model: str, doors: Sequence[str], sink: bool, failed: bool) -> str:
    """Why nothing is among the captures of a model, and what to do.

    Args:
        model: Its class.
        doors: Its methods that ran inside of the capture.
        sink: Whether a sink takes the captures.
        failed: Whether the last forward ended in an error.
    """
    if sink:
        return "they were handed to the sink= of this capture as the layers ran, and none was kept"
    if failed:
        return f"the last forward of {model} inside `with capture(...)` ended in an error"
    if doors:
        return f"no attention ran inside {' and '.join(doors)} of {model}, which is all that was called of it"
    return (
        f"neither {model} nor a method of it was called inside `with capture(...)`; if a part of it was, by itself, "
        "hand that part to capture"
    )
