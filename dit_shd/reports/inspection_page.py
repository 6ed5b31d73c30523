"""The page and the pictures of `dit-shd inspect`."""

import html
import io
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dit_shd import __version__
from dit_shd.analysis.inputs import DatasetInputs
from dit_shd.analysis.inspect import Findings
from dit_shd.core.environment import command
from dit_shd.reports.figures.alpha import distribution_figure, merge_names, timestep_figure
from dit_shd.reports.figures.attention import binned_figure, maps_figure
from dit_shd.reports.figures.heads import similarity_figure
from dit_shd.reports.figures.style import both
from dit_shd.reports.html import paragraph, picture, section, wide, write_page
from dit_shd.reports.tables import facts, number, table_html
from dit_shd.squeezing.matching import group_similarity
from dit_shd.squeezing.plans import Plan

SCROLLED = 900
"""Width in pixels from which a picture scrolls on a narrow screen instead of shrinking."""
Pair = tuple[bytes, bytes]
"""A picture for light and for dark pages."""


@dataclass
class Pictures:
    """All pictures of a page."""

    pairs: dict[str, Pair] = field(default_factory=dict)
    """By the names of their files."""
    maps: dict[str, str] = field(default_factory=dict)
    """Layer -> the name of its maps."""

    @property
    def files(self) -> dict[str, bytes]:
        """PNG files by name, on white, so that they are legible on any background."""
        return {name: on_white(light) for name, (light, _) in self.pairs.items()}


def draw_pictures(findings: Findings) -> Pictures:
    """Draw all pictures of a page."""
    pictures = Pictures()
    shown = {name: findings.maps[name] for name in findings.shown}
    inputs = _input_images(findings)
    for name, maps in shown.items():
        pictures.maps[name] = f"maps_{name.replace('.', '_').replace(':', '_').replace('#', '_')}"
        pictures.pairs[pictures.maps[name]] = both(maps_figure, maps, inputs)
    pictures.pairs["maps_whole"] = both(binned_figure, shown)
    pictures.pairs["similarity"] = both(similarity_figure, findings.layers)
    merging = [layer for layer in findings.layers if layer.alpha.shape[2]]
    if merging:
        pictures.pairs["alpha_layers"] = both(distribution_figure, merging)
        pictures.pairs["alpha_timesteps"] = both(timestep_figure, merging, findings.timesteps)
    return pictures


def write_inspect_page(findings: Findings, pictures: Pictures, page: Path) -> None:
    """Write the page of an analysis."""
    body = [
        f"<header><h1>Attention of {html.escape(findings.config.model)}</h1>",
        paragraph(_summary(findings), "lead"),
        paragraph(f"Inputs: {findings.inputs.words}.") + "</header>",
        _maps(findings, pictures),
        _similarity(findings, pictures),
        _alpha(findings, pictures),
        _footer(findings),
    ]
    write_page(page, f"dit_shd inspect: {findings.config.model}", body)


def _summary(findings: Findings) -> str:
    millions = sum(p.numel() for p in findings.model.parameters()) / 1e6
    heads = sorted({layer.heads for layer in findings.layers})
    tokens = sorted({layer.tokens for layer in findings.layers})
    groups = sorted({len(layer.plan) for layer in findings.layers})
    block = {
        "image": " Of joint text-image attention only image queries over image keys are analysed, renormalised.",
        "joint": "",
    }.get(findings.scope.block or "joint", f" Of joint text-image attention: {findings.scope.block}.")
    return (
        f"{type(findings.model).__name__}: {len(findings.layers)} attention layers of {_either(heads)} heads over "
        f"{_either(tokens)} tokens; {millions:.2f} M parameters. Analysed for merging its heads into {_either(groups)} "
        f"(Squeezing-Heads Distillation).{block}"
    )


def _either(values: Sequence[int]) -> str:
    return " or ".join(f"{value:,}" for value in values)


def _maps(findings: Findings, pictures: Pictures) -> str:
    words = (
        f"The attention of query tokens (framed) of the first sample at timestep {findings.timestep}, in each head; "
        "the last line is the mean over all query tokens. Keys are laid out as in the image. Bright: much attention; "
        "one scale (square root) for each line."
    )
    parts = [paragraph(words)]
    for layer, file in pictures.maps.items():
        note = "" if findings.maps[layer].keys else " (the grid of these tokens is unknown: a strip in their order)"
        parts.append(_fitted(pictures.pairs[file], f"attention maps of {layer}", layer + note))
    parts.append(
        paragraph(
            "The same layers over all tokens: query tokens down, key tokens across, mean over heads. Beyond 128 "
            "tokens, intervals of keys are summed and intervals of queries averaged."
        )
    )
    parts.append(_fitted(pictures.pairs["maps_whole"], "maps over all tokens, mean over heads"))
    return section("Attention maps", *parts)


def _similarity(findings: Findings, pictures: Pictures) -> str:
    words = (
        "The cosine of every two heads' maps, over all samples and timesteps below. Frames: the contiguous merge plan, "
        "neighbouring heads. Dots: the matched plan, groups of the same sizes with the largest similarity inside "
        "(losses: [{name: shd, plan: matched}] computes one in training). Heads count from 1."
    )
    headings = [("layer", ""), ("contiguous", "groups"), ("cosine", "mean inside"), ("matched", "groups"),
                ("cosine", "mean inside")]  # fmt: skip
    cells = [
        [
            layer.layer.removesuffix(".attn"),
            _plan(layer.plan),
            _inside(layer.cosines, layer.plan),
            _plan(layer.matched),
            _inside(layer.cosines, layer.matched),
        ]
        for layer in findings.layers
    ]
    image = _fitted(pictures.pairs["similarity"], "similarity of heads by layer")
    return section("Similar heads", paragraph(words), image, table_html(headings, cells, tinted=-1))


def _plan(plan: Plan) -> str:
    return ", ".join("+".join(str(head + 1) for head in group) for group in plan)


def _inside(cosines: np.ndarray, plan: Plan) -> str:
    pairs = sum(len(group) * (len(group) - 1) // 2 for group in plan)
    return number(sum(group_similarity(cosines, group) for group in plan) / pairs) if pairs else "none"


def _alpha(findings: Findings, pictures: Pictures) -> str:
    if "alpha_layers" not in pictures.pairs:
        return section("Alpha", paragraph("With as many student heads as heads nothing is merged: there is no alpha."))
    count = findings.layers[0].alpha.shape[1]
    by_layer = (
        f"The weight alpha of the first heads of each merge, in closed form for each of {count} samples at each of "
        f"{len(findings.timesteps)} timesteps, of the contiguous plan. A half is plain averaging; a spread means that "
        "no constant fits. Dot: median; bar: quartiles."
    )
    by_timestep = (
        "Alpha against the timestep: a line for each merge (heads left of the bar have weight alpha), mean over the "
        "samples; the band is one standard deviation of the samples."
    )
    return section(
        "Alpha",
        paragraph(by_layer),
        _fitted(pictures.pairs["alpha_layers"], "distribution of alpha by layer"),
        paragraph(by_timestep),
        _fitted(pictures.pairs["alpha_timesteps"], "alpha by timestep"),
        _largest_changes(findings),
        paragraph(
            "The merge whose mean changes most between two timesteps, layer by layer. Clamped: alphas outside of 0 to "
            "1 before clamping. Residual: the norm of the error of the merged heads' output, relative to the heads' "
            "output.",
            "quiet",
        ),
    )


def _largest_changes(findings: Findings) -> str:
    """The table of the merges whose alpha changes most over timesteps."""
    headings = [("layer", ""), ("merge", "heads"), ("lowest", "mean alpha"), ("highest", "mean alpha"),
                ("spread", "of samples, std"), ("clamped", "share"), ("residual", "lost of the output")]  # fmt: skip
    cells = []
    for layer in findings.layers:
        if not layer.alpha.shape[2]:
            continue
        mean = layer.alpha.mean(1)  # [T,merges]
        most = int(np.ptp(mean, axis=0).argmax())
        low, high = int(mean[:, most].argmin()), int(mean[:, most].argmax())
        cells.append(
            [
                layer.layer.removesuffix(".attn"),
                merge_names(layer.plan)[most],
                f"{mean[low, most]:.2f} at t = {findings.timesteps[low]}",
                f"{mean[high, most]:.2f} at t = {findings.timesteps[high]}",
                f"{layer.alpha[..., most].std(1).mean():.2f}",
                f"{layer.clamped.mean():.1%}",
                f"{layer.residual.mean():.1%}",
            ]
        )
    return table_html(headings, cells, tinted=-1)


def _input_images(findings: Findings) -> dict[str, np.ndarray]:
    """The first sample without and with noise; nothing if it is no image."""
    inputs = findings.inputs
    latents = inputs.keywords(inputs.first, findings.timestep)["hidden_states"]
    if isinstance(inputs, DatasetInputs):
        return {"image": _pixels(inputs.x_0[0]), "with noise": _pixels(latents[0])}
    return {}


def _pixels(latents: Tensor) -> np.ndarray:
    """[c,y,x] as [y,x,3] if there are three channels, else their mean [y,x]."""
    if len(latents) != 3:
        return latents.mean(0).numpy()
    return ((latents + 1) / 2).clamp(0, 1).permute(1, 2, 0).numpy()


def _fitted(pair: Pair, alt: str, caption: str = "") -> str:
    """A picture at its natural size, or as wide as the page if it is larger."""
    pixels = int.from_bytes(pair[0][16:20])  # the width in the header of a PNG
    return wide(picture(pair, alt, caption, css="scroll" if pixels > SCROLLED else ""))


def on_white(png: bytes) -> bytes:
    """A transparent PNG on white."""
    from PIL import Image

    with Image.open(io.BytesIO(png)) as image:
        sheet = Image.new("RGB", image.size, "white")
        sheet.paste(image, mask=image.getchannel("A"))
    stream = io.BytesIO()
    sheet.save(stream, format="PNG", optimize=True)
    return stream.getvalue()


def _footer(findings: Findings) -> str:
    config = findings.config
    about = {
        "command": command(),
        "timesteps": ", ".join(map(str, findings.timesteps)),
        "samples, seed": f"{findings.layers[0].alpha.shape[1]}, {config.seed}",
        "numbers": "numbers.json beside this page (heads and plans count from 0 there, as in squeeze)",
        "versions": f"dit_shd {__version__}, torch {torch.__version__}, python {platform.python_version()}",
        "method": "arXiv 2502.07436, Squeezing-Heads Distillation",
    }
    return "<footer>" + facts(about) + "</footer>"
