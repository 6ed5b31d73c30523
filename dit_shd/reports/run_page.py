"""The page of runs: how far they are, every number of their logs by step, and the samples of their evaluations."""

import html
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from dit_shd.reports.figures.alpha import SHARE, short_layer
from dit_shd.reports.figures.chart import SMALL, Axis, Chart, chart_row, series_css
from dit_shd.reports.figures.images import reduced
from dit_shd.reports.figures.training import POINTS, Rows, points_of, run_legend, term_charts
from dit_shd.reports.footer import page_footer
from dit_shd.reports.html import Link, header, legend, paragraph, picture, section, side_by_side, write_page
from dit_shd.reports.tables import table_html

TITLE = "dit_shd plot"
"""With which the title of each such page begins."""
MERGE_POINTS = 120
"""Points of a line of alpha at most."""
BUDGET = 40_000
"""Points of all lines of a section by layer: models of many layers have fewer in each."""
SECONDS = {
    "images_per_second": "images a second",
    "memory_gib": "memory, GiB",
    "tflops": "TFLOP a second",
    "mfu": "MFU",
}
"""Keys of timing.jsonl -> titles."""
TITLES = {"loss": "loss (weighted sum)", "lr": "learning rate", "grad_norm": "norm of the gradient"}


@dataclass(frozen=True)
class RunLog:
    """The logs of a run."""

    name: str
    folder: Path
    steps: int
    """Of the whole run."""
    metrics: Rows
    timing: Rows = ()
    evaluations: Rows = ()
    samples: Mapping[int, bytes] = field(default_factory=dict)
    """Step -> a grid of images as PNG."""

    @cached_property
    def keys(self) -> list[str]:
        """All keys of its metrics, in the order in which they were first logged."""
        return list(dict.fromkeys(key for row in self.metrics for key in row))

    @property
    def step(self) -> int:
        """The last step logged."""
        return int(self.metrics[-1]["step"]) if self.metrics else 0

    @property
    def seconds_left(self) -> float | None:
        """Until its last step, by the pace of the last rows; None if it is not known."""
        paces = [row["seconds"] for row in self.timing[-10:] if "seconds" in row]
        return sorted(paces)[len(paces) // 2] * (self.steps - self.step) if paces else None


def write_run_page(runs: Sequence[RunLog], page: Path, reload_seconds: int = 0) -> None:
    """Write the page of one or several runs.

    Args:
        runs: Their logs.
        page: The file.
        reload_seconds: Interval in which the page reloads itself; 0 where no run goes on.
    """
    names = " and ".join(run.name for run in runs) if len(runs) < 4 else f"{len(runs)} runs"
    held = '<p><button class="tool pause" type="button">hold still</button></p>' if reload_seconds else ""
    every = paragraph(f"This page comes again every {reload_seconds} seconds while a run trains.", "quiet")
    body = [
        header(
            "run" if len(runs) == 1 else "runs",
            f"Training of {names}",
            findings(runs),
            _tiles(runs),
            every + held if held else "",
        ),
        _states(runs) if len(runs) > 1 else "",
        _terms(runs),
        _evaluations(runs),
        _layers(runs, "kl", "Divergence by layer", "Of the student's maps from the squeezed teacher's."),
        _alpha(runs),
        _others(runs),
        _pace(runs),
        _samples(runs),
        _footer(runs, page),
    ]
    write_page(page, f"{TITLE}: {names}", body, reload_seconds)


def findings(runs: Sequence[RunLog]) -> list[str]:
    """How far each run is, and how its loss has changed; with several, whose loss terms are lowest at the end."""
    sentences = []
    for run in runs[:4]:
        _, losses = points_of(run.metrics, "loss")
        logged = {int(row["step"]): math.isfinite(row["loss"]) for row in run.metrics if "loss" in row}
        if not len(losses):
            state = f"its loss is not finite from step {min(logged):,} on" if logged else "no step is logged yet"
            sentences.append(f"{run.name}: {state}, of {run.steps:,}.")
            continue
        tenth = max(1, len(losses) // 10)
        first, last = float(losses[:tenth].mean()), float(losses[-tenth:].mean())
        done = "is done" if run.step >= run.steps else f"is at step {run.step:,} of {run.steps:,}{_left(run)}"
        last_finite = max(step for step, finite in logged.items() if finite)
        broken = "" if logged[max(logged)] else f", and is not finite after step {last_finite:,}"
        sentences.append(f"{run.name} {done}; its loss went from {first:.3g} to {last:.3g}{broken}.")
    return sentences


def shared_terms(runs: Sequence[RunLog]) -> dict[str, str]:
    """Loss terms, as plain/noise: all keys of one slash that are not of a layer."""
    keys = dict.fromkeys(key for run in runs for key in run.keys)
    terms = {key: TITLES["loss"] for key in keys if key == "loss"}
    return terms | {key: key for key in keys if key.count("/") == 1 and not key.startswith("grad")}


def by_layer(run: RunLog, measure: str) -> dict[str, str]:
    """Keys of one number by layer, as plain/shd/kl/LAYER -> LAYER."""
    return {key: key.split("/", 3)[3] for key in run.keys if key.count("/") == 3 and key.split("/")[2] == measure}


def merges_of(run: RunLog, key: str) -> dict[str, str]:
    """Keys of the merges of a layer -> their heads; the mean of the layer alone in logs that have no more."""
    return {k: k.removeprefix(f"{key}/") for k in run.keys if k.startswith(f"{key}/")} or {key: "mean of all"}


def _left(run: RunLog) -> str:
    seconds = run.seconds_left
    if seconds is None:
        return ""
    hours, minutes = divmod(round(seconds / 60), 60)
    return f", about {f'{hours} h {minutes} min' if hours else f'{minutes} min'} to go" if minutes or hours else ""


def _tiles(runs: Sequence[RunLog]) -> dict[str, str]:
    if len(runs) > 1:
        return {}
    (run,) = runs
    numbers = {"of its steps": f"{run.step / max(run.steps, 1):.0%}"}
    if run.metrics:
        numbers |= {k: f"{run.metrics[-1][k]:.3g}" for k in [*shared_terms(runs)][:4] if k in run.metrics[-1]}
    if run.timing:
        numbers["images a second"] = f"{run.timing[-1].get('images_per_second', 0):.3g}"
    return numbers


def _states(runs: Sequence[RunLog]) -> str:
    terms = list(shared_terms(runs))[:6]
    headings = [("run", ""), ("step", ""), ("of", "steps"), *((term, "last row") for term in terms)]
    rows = []
    for run in runs:
        last = run.metrics[-1] if run.metrics else {}
        rows.append(
            [run.name, f"{run.step:,}", f"{run.steps:,}", *(f"{last[t]:.4g}" if t in last else "" for t in terms)]
        )
    return section("How far", table_html(headings, rows, tinted=-1, what="how far the runs are"))


def _terms(runs: Sequence[RunLog]) -> str:
    curves = {run.name: run.metrics for run in runs}
    charts = term_charts(curves, shared_terms(runs))
    if not charts:
        return section("Loss", paragraph("No step is logged yet."))
    words = "Faint: each row of the log; strong: a running mean. Terms are not weighted; their sum, the loss, is."
    return section("Loss", paragraph(words, "quiet"), legend(run_legend(curves)), chart_row(charts))


def _evaluations(runs: Sequence[RunLog]) -> str:
    curves = {run.name: run.evaluations for run in runs if run.evaluations}
    names = dict.fromkeys(key for rows in curves.values() for row in rows for key in row if key != "step")
    charts = term_charts(curves, {name: name for name in names}, log=False)
    return section("Evaluations", legend(run_legend(curves)), chart_row(charts)) if charts else ""


def _layers(runs: Sequence[RunLog], measure: str, title: str, words: str) -> str:
    keys = {key: short_layer(layer) for run in runs for key, layer in by_layer(run, measure).items()}
    most = points_each(2 * len(keys) * len(runs), POINTS)
    charts = term_charts({run.name: run.metrics for run in runs}, keys, small=True, points=most)
    return section(title, paragraph(words, "quiet"), chart_row(charts, small=True)) if charts else ""


def _alpha(runs: Sequence[RunLog]) -> str:
    parts = []
    lines = sum(len(merges_of(run, key)) for run in runs for key in by_layer(run, "alpha"))
    most = points_each(lines, MERGE_POINTS)
    for run in runs:
        charts = [_merge_chart(run, key, layer, most) for key, layer in by_layer(run, "alpha").items()]
        if charts:
            parts += [f"<h3>{html.escape(run.name)}</h3>"] if len(runs) > 1 else []
            parts.append(chart_row(charts, small=True))
    words = "The mean over a batch of the weight of the heads left of the bar, for each merge by itself."
    return section("Alpha by layer", paragraph(words, "quiet"), *parts) if parts else ""


def points_each(lines: int, most: int) -> int:
    """Points of a line, such that all lines together keep to the budget."""
    return max(20, min(most, BUDGET // max(lines, 1)))


def _merge_chart(run: RunLog, key: str, layer: str, most: int) -> Chart:
    merges = merges_of(run, key)
    chart = Chart(short_layer(layer), Axis("step", 0, max(run.step, 1)), SHARE, SMALL)
    for i, (name, heads) in enumerate(merges.items()):
        xs, ys = points_of(run.metrics, name, most)
        chart.line(xs, ys, series_css(i), f"heads {heads}" if name != key else heads)
        if len(xs):
            chart.words(xs[-1], ys[-1], heads, anchor="end", up=8)
    return chart


def _others(runs: Sequence[RunLog]) -> str:
    """Learning rate, gradients, and whatever else was logged that is no term and of no layer."""
    keys = dict.fromkeys(key for run in runs for key in run.keys)
    terms = shared_terms(runs)
    shown = {k: TITLES.get(k, k) for k in keys if k != "step" and k not in terms and k.count("/") < 3}
    charts = term_charts({run.name: run.metrics for run in runs}, shown, log=False, small=True)
    return section("Optimizer and the rest", chart_row(charts, small=True)) if charts else ""


def _pace(runs: Sequence[RunLog]) -> str:
    charts = term_charts({run.name: run.timing for run in runs}, SECONDS, log=False, small=True)
    return section("Pace and memory", chart_row(charts, small=True)) if charts else ""


def _samples(runs: Sequence[RunLog]) -> str:
    grids, damaged = [], []
    pictures = {(run.name, step): png for run in runs for step, png in run.samples.items()}
    for (name, step), png in pictures.items():
        try:
            grids.append(picture(reduced(png), f"samples of {name} at step {step}", f"{name}, step {step:,}"))
        except OSError:  # no picture, or half of one
            damaged.append(f"{name}, step {step:,}")
    words = paragraph(f"Not readable: {'; '.join(damaged)}.") if damaged else ""
    return section("Samples", words, side_by_side(grids)) if grids or damaged else ""


def _footer(runs: Sequence[RunLog], page: Path) -> str:
    about: dict[str, str | Link] = {}
    for run in runs:
        for file in ("config.yaml", "metrics.jsonl", "timing.jsonl", "evaluations.jsonl", "student"):
            if (run.folder / file).exists():
                about[f"{run.name}: {file.partition('.')[0]}"] = Link(file, (run.folder / file).absolute())
        about[f"{run.name}: go on"] = shlex.join(["dit-shd", "train", str(run.folder / "config.yaml")])
    return page_footer(about, page, copied=True)
