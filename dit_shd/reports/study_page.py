"""The page of a study: its question, every seed of every variant, the findings, the cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dit_shd.reports.figures.study import Curve, Dots, cost_figure, curves_figure, dot_figure
from dit_shd.reports.figures.style import both
from dit_shd.reports.html import paragraph, picture, section, side_by_side, wide, write_page
from dit_shd.reports.tables import facts, table_html

SPREAD = "Mean and standard deviation over training seeds; costs are means of one cell."
INTERVALS = (
    "Differences are paired by seed. The interval holds the mean difference with 95% confidence (Student's t over "
    "seeds); the corrected one and p allow for the number of comparisons in this table (Holm). Detectable is the true "
    "difference that as many seeds, with this spread, would find four times in five: a smaller one can be there "
    "without being seen."
)


@dataclass(frozen=True)
class Table:
    """A table as text."""

    headings: Sequence[tuple[str, str]]
    """(name, explanation in small letters) of each column."""
    rows: Sequence[Sequence[str]]

    def html(self) -> str:
        """The table as HTML."""
        return table_html(self.headings, self.rows, tinted=-1)


@dataclass(frozen=True, eq=False)
class StudyReport:
    """A study as its page shows it."""

    title: str
    question: str
    state: str
    """How many cells are done, and what they took."""
    claims: Table
    variants: Table
    comparisons: Table
    failures: Table
    notes: Sequence[str]
    dots: Mapping[str, Dots]
    """Figure -> the values of every variant and seed."""
    curves: Mapping[str, Sequence[Curve]]
    """Variant -> the loss curves of its seeds."""
    cost: Mapping[str, tuple[float, float, float]]
    """Variant -> mean CPU seconds of training, mean and standard deviation of the deciding figure."""
    figure: str
    """The one that decides."""
    samples: Mapping[str, bytes]
    """Variant -> a grid of images of its first seed, as PNG."""
    facts: Mapping[str, str]
    """Command, versions and the like."""


def write_study_page(report: StudyReport, page: Path) -> None:
    """Write the page of a study, finished or not."""
    body = [
        f"<header>{section(report.title, *_lead(report))}</header>",
        section("Claims", report.claims.html()) if report.claims.rows else "",
        section("Every seed", *(_dots(name, dots) for name, dots in report.dots.items())) if report.dots else "",
        section("Variants", paragraph(SPREAD, "quiet"), report.variants.html()),
        section("Differences", paragraph(INTERVALS, "quiet"), report.comparisons.html()),
        section("Failures", report.failures.html()) if report.failures.rows else "",
        _cost(report),
        _curves(report),
        _samples(report),
        f"<footer>{facts(report.facts)}</footer>",
    ]
    write_page(page, report.title, body)


def _lead(report: StudyReport) -> list[str]:
    words = [paragraph(report.question, "lead")] if report.question else []
    return [*words, paragraph(report.state), *(paragraph(note, "quiet") for note in report.notes)]


def _dots(name: str, dots: Dots) -> str:
    return wide(picture(both(dot_figure, dots, name), f"{name} of every variant and seed", name))


def _cost(report: StudyReport) -> str:
    if not report.cost:
        return ""
    drawn = both(cost_figure, report.cost, report.figure)
    return section("Cost against quality", wide(picture(drawn, f"CPU seconds of training against {report.figure}")))


def _curves(report: StudyReport) -> str:
    if not any(report.curves.values()):
        return ""
    drawn = both(curves_figure, report.curves)
    return section("Loss curves", wide(picture(drawn, "loss by training step, every seed and the mean", css="scroll")))


def _samples(report: StudyReport) -> str:
    grids = [picture(png, f"samples of {name}", name) for name, png in report.samples.items()]
    return section("Images of the first seed", side_by_side(grids)) if grids else ""
