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
from dit_shd.reports.figures.attention import maps_figure, whole_figure
from dit_shd.reports.figures.heads import similarity_figure
from dit_shd.reports.figures.style import both
from dit_shd.reports.html import paragraph, picture, section, wide, write_page
from dit_shd.reports.tables import facts, number, table_html
from dit_shd.squeezing.matching import group_similarity
from dit_shd.squeezing.plans import Plan

SCROLLED = 900
"""Pixels from which a picture scrolls on a narrow screen instead of shrinking."""
Pair = tuple[bytes, bytes]
"""A picture for light and for dark pages."""


@dataclass
class Pictures:
    """Everything that is drawn, by the name of its file."""

    pairs: dict[str, Pair] = field(default_factory=dict)
    maps: dict[str, str] = field(default_factory=dict)
    """Layer -> the name of its maps."""

    @property
    def files(self) -> dict[str, bytes]:
        """For files: on white, so that they can be read wherever they are put."""
        return {name: on_white(light) for name, (light, _) in self.pairs.items()}


def draw_pictures(found: Findings) -> Pictures:
    """All pictures of a page."""
    drawn = Pictures()
    shown = {name: found.looks[name] for name in found.shown}
    seen = _seen(found)
    for name, look in shown.items():
        drawn.maps[name] = f"maps_{name.replace('.', '_').replace(':', '_').replace('#', '_')}"
        drawn.pairs[drawn.maps[name]] = both(maps_figure, look, seen)
    sizes = {name: (found.looks[name].tokens_in_all, found.looks[name].rows.shape[2]) for name in shown}
    drawn.pairs["maps_whole"] = both(whole_figure, shown, sizes)
    drawn.pairs["similarity"] = both(similarity_figure, found.layers)
    merging = [layer for layer in found.layers if layer.alpha.shape[2]]
    if merging:
        drawn.pairs["alpha_layers"] = both(distribution_figure, merging)
        drawn.pairs["alpha_timesteps"] = both(timestep_figure, merging, found.timesteps)
    return drawn


def write_inspect_page(found: Findings, drawn: Pictures, page: Path) -> None:
    """Write the page."""
    body = [
        f"<header><h1>Attention of {html.escape(found.config.model)}</h1>",
        paragraph(_summary(found), "lead"),
        paragraph(f"Shown to it: {found.inputs.words}.") + "</header>",
        _maps(found, drawn),
        _similarity(found, drawn),
        _alpha(found, drawn),
        _footer(found),
    ]
    write_page(page, f"dit_shd inspect: {found.config.model}", body)


def _summary(found: Findings) -> str:
    millions = sum(p.numel() for p in found.model.parameters()) / 1e6
    heads = sorted({layer.heads for layer in found.layers})
    tokens = sorted({layer.tokens for layer in found.layers})
    groups = sorted({len(layer.plan) for layer in found.layers})
    block = {
        "image": " Of joint text-image attention only image queries over image keys are looked at, renormalised.",
        "joint": "",
    }.get(found.scope.block or "joint", f" Of joint text-image attention: {found.scope.block}.")
    return (
        f"{type(found.model).__name__}: {len(found.layers)} attention layers of {_either(heads)} heads over "
        f"{_either(tokens)} tokens; {millions:.2f} M parameters. What merging its heads into {_either(groups)} would "
        f"take (Squeezing-Heads Distillation).{block}"
    )


def _either(values: Sequence[int]) -> str:
    return " or ".join(f"{value:,}" for value in values)


def _maps(found: Findings, drawn: Pictures) -> str:
    words = (
        f"Where single query tokens (framed) of the first sample look at timestep {found.timestep}, in each head; the "
        "last line is the mean over all query tokens: what a head looks at on the whole. Keys are laid out as the "
        "image is. Bright: much attention; one scale (square root) for each line."
    )
    parts = [paragraph(words)]
    for layer, file in drawn.maps.items():
        note = "" if found.looks[layer].keys else " (these tokens do not lie in a known grid: a strip in their order)"
        parts.append(_fitted(drawn.pairs[file], f"attention maps of {layer}", layer + note))
    parts.append(
        paragraph(
            "The same layers whole: query tokens down, key tokens across, mean over heads. Where there are more than "
            "128, a run of keys is summed and a run of queries averaged."
        )
    )
    parts.append(_fitted(drawn.pairs["maps_whole"], "whole maps, mean over heads"))
    return section("Attention maps", *parts)


def _similarity(found: Findings, drawn: Pictures) -> str:
    words = (
        "The cosine of every two heads' maps, over all samples and timesteps below. Frames: the contiguous merge plan, "
        "neighbouring heads. Dots: the matched plan, groups of the same sizes with the largest similarity inside "
        "(losses: [{name: shd, plan: matched}] finds one by itself). Heads count from 1."
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
        for layer in found.layers
    ]
    image = _fitted(drawn.pairs["similarity"], "similarity of heads by layer")
    return section("Which heads are alike", paragraph(words), image, table_html(headings, cells, tinted=-1))


def _plan(plan: Plan) -> str:
    return ", ".join("+".join(str(head + 1) for head in part) for part in plan)


def _inside(cosines: np.ndarray, plan: Plan) -> str:
    pairs = sum(len(part) * (len(part) - 1) // 2 for part in plan)
    return number(sum(group_similarity(cosines, part) for part in plan) / pairs) if pairs else "none"


def _alpha(found: Findings, drawn: Pictures) -> str:
    if "alpha_layers" not in drawn.pairs:
        return section("Alpha", paragraph("With as many student heads as heads nothing is merged: there is no alpha."))
    count = found.layers[0].alpha.shape[1]
    by_layer = (
        f"The weight alpha of what is merged first, in closed form for each of {count} samples at each of "
        f"{len(found.timesteps)} timesteps, of the contiguous plan. A half means plain averaging; a spread means that "
        "no constant would do. Dot: median; bar: quartiles."
    )
    by_timestep = (
        "Alpha against the timestep: a line for each merge (heads left of the bar have weight alpha), mean over the "
        "samples; the band is one standard deviation of the samples."
    )
    return section(
        "Alpha",
        paragraph(by_layer),
        _fitted(drawn.pairs["alpha_layers"], "distribution of alpha by layer"),
        paragraph(by_timestep),
        _fitted(drawn.pairs["alpha_timesteps"], "alpha by timestep"),
        _moves(found),
        paragraph(
            "The merge whose mean moves most between two timesteps, layer by layer. Clamped: alphas that had left 0 to "
            "1. Residual: the norm of what the merged heads' output lacks, relative to the heads' own output.",
            "quiet",
        ),
    )


def _moves(found: Findings) -> str:
    """The table of what moves most."""
    headings = [("layer", ""), ("merge", "heads"), ("lowest", "mean alpha"), ("highest", "mean alpha"),
                ("spread", "of samples, std"), ("clamped", "share"), ("residual", "lost of the output")]  # fmt: skip
    cells = []
    for layer in found.layers:
        if not layer.alpha.shape[2]:
            continue
        mean = layer.alpha.mean(1)  # [T,merges]
        most = int(np.ptp(mean, axis=0).argmax())
        low, high = int(mean[:, most].argmin()), int(mean[:, most].argmax())
        cells.append(
            [
                layer.layer.removesuffix(".attn"),
                merge_names(layer.plan)[most],
                f"{mean[low, most]:.2f} at t = {found.timesteps[low]}",
                f"{mean[high, most]:.2f} at t = {found.timesteps[high]}",
                f"{layer.alpha[..., most].std(1).mean():.2f}",
                f"{layer.clamped.mean():.1%}",
                f"{layer.residual.mean():.1%}",
            ]
        )
    return table_html(headings, cells, tinted=-1)


def _seen(found: Findings) -> dict[str, np.ndarray]:
    """What the first sample looks like; nothing where it is no picture."""
    latents = found.inputs.keywords(found.inputs.first, found.timestep)["hidden_states"]
    if isinstance(found.inputs, DatasetInputs):
        return {"image": _pixels(found.inputs.x_0[0]), "as seen": _pixels(latents[0])}
    return {}


def _pixels(latents: Tensor) -> np.ndarray:
    """[c,y,x] as [y,x,3] where there are three channels, else their mean."""
    if len(latents) != 3:
        return latents.mean(0).numpy()
    return ((latents + 1) / 2).clamp(0, 1).permute(1, 2, 0).numpy()


def _fitted(pair: Pair, alt: str, caption: str = "") -> str:
    """A picture at its own size, or as wide as the page if it is larger."""
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


def _footer(found: Findings) -> str:
    config = found.config
    about = {
        "command": command(),
        "timesteps": ", ".join(map(str, found.timesteps)),
        "samples, seed": f"{found.layers[0].alpha.shape[1]}, {config.seed}",
        "numbers": "numbers.json beside this page (heads and plans count from 0 there, as squeeze takes them)",
        "versions": f"dit_shd {__version__}, torch {torch.__version__}, python {platform.python_version()}",
        "method": "arXiv 2502.07436, Squeezing-Heads Distillation",
    }
    return "<footer>" + facts(about) + "</footer>"
