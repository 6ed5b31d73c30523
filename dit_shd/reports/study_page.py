"""The page of a study: its question, every seed of every variant, the findings, the cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dit_shd.reports.figures.chart import chart_row
from dit_shd.reports.figures.study import Curve, Dots, cost_chart, curve_charts, dot_chart
from dit_shd.reports.figures.training import run_legend
from dit_shd.reports.footer import page_footer
from dit_shd.reports.html import Link, header, legend, paragraph, picture, section, side_by_side, write_page
from dit_shd.reports.tables import markdown, table_html

SPREAD = "Mean and standard deviation over training seeds; costs are means of one cell."
INTERVALS = (
    "Differences are paired by seed. The interval holds the mean difference with 95% confidence (Student's t over "
    "seeds); the corrected one and p allow for the number of comparisons in this table (Holm). Detectable is the true "
    "difference that as many seeds, with this spread, would find four times in five by a test of its own, uncorrected: "
    "a smaller one can be there without being seen."
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

    def markdown(self) -> str:
        """The table as Markdown."""
        return markdown(self.headings, self.rows)


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
        header(
            "study",
            report.title,
            verdicts(report.claims),
            {},
            paragraph(report.question, "lead") if report.question else "",
            paragraph(report.state),
            *(paragraph(note, "quiet") for note in report.notes),
        ),
        section("Claims", report.claims.html()) if report.claims.rows else "",
        _dots(report),
        section("Variants", paragraph(SPREAD, "quiet"), report.variants.html()),
        section("Differences", paragraph(INTERVALS, "quiet"), report.comparisons.html())
        if report.comparisons.rows
        else "",
        section("Failures", report.failures.html()) if report.failures.rows else "",
        _cost(report),
        _curves(report),
        _samples(report),
        page_footer(_facts(report, page), page),
    ]
    write_page(page, report.title, body)


def verdicts(claims: Table) -> list[str]:
    """How many claims were seen, and which: the column called verdict."""
    names = [name for name, _ in claims.headings]
    if "verdict" not in names or not claims.rows:
        return ["No claim is judged yet."]
    column = names.index("verdict")
    of_verdict: dict[str, list[str]] = {}
    for row in claims.rows:
        of_verdict.setdefault(row[column], []).append(row[0])
    counts = ", ".join(f"{len(texts)} {verdict}" for verdict, texts in of_verdict.items())
    first = next(iter(of_verdict.get("seen", [])), None)
    sentences = [f"Of {len(claims.rows)} claims: {counts}."]
    if not first:
        return sentences
    rest = first.split()[0][1:]
    first = first[0].lower() + first[1:] if rest == rest.lower() else first  # not SHD, MiniLMv2
    return [*sentences, f"Seen: {first}."]


def _facts(report: StudyReport, page: Path) -> dict[str, str | Link]:
    """The facts, the rows' file as a link."""
    return {name: Link(value, page.parent / value) if name == "rows" else value for name, value in report.facts.items()}


def _dots(report: StudyReport) -> str:
    if not report.dots:
        return ""
    words = "A dot for each seed; the bar is the mean."
    return section(
        "Every seed", paragraph(words, "quiet"), chart_row([dot_chart(d, n) for n, d in report.dots.items()])
    )


def _cost(report: StudyReport) -> str:
    if not report.cost:
        return ""
    words = "The line is one standard deviation over seeds."
    chart = cost_chart(report.cost, report.figure)
    return section("Cost against quality", paragraph(words, "quiet"), chart_row([chart]))


def _curves(report: StudyReport) -> str:
    if not any(report.curves.values()):
        return ""
    words = "Every seed faint, the mean over seeds strong."
    shown = legend(run_legend(report.curves)), chart_row(curve_charts(report.curves))
    return section("Loss curves", paragraph(words, "quiet"), *shown)


def _samples(report: StudyReport) -> str:
    grids = [picture(png, f"samples of {name}", name) for name, png in report.samples.items()]
    return section("Images of the first seed", side_by_side(grids)) if grids else ""
