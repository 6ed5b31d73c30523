"""The page of `dit-shd inspect` for a language model: the paper's figures 1 and 2 of any of them."""

import html
import platform
from pathlib import Path

import torch

from dit_shd import __version__
from dit_shd.analysis.inspect_text import TextFindings, pictured_heads
from dit_shd.core.environment import command
from dit_shd.reports.figures.token_maps import alpha_by_layer_figure, similarity_panels, token_maps
from dit_shd.reports.html import charts, paragraph, section, wide, write_page
from dit_shd.reports.tables import facts, table_html
from dit_shd.squeezing.plans import Plan


def write_text_inspection(findings: TextFindings, page: Path) -> None:
    """Write the page.

    Args:
        findings: Of an analysis.
        page: The file.
    """
    body = [
        f"<header><h1>Attention of {html.escape(findings.name)}</h1>",
        paragraph(_summary(findings), "lead") + "</header>",
        _maps(findings),
        _similarity(findings),
        _alpha(findings),
        _footer(findings),
    ]
    write_page(page, f"dit_shd inspect: {findings.name}", body)


def _summary(findings: TextFindings) -> str:
    millions = sum(p.numel() for p in findings.model.parameters()) / 1e6
    heads = " or ".join(str(n) for n in sorted({layer.heads for layer in findings.layers}))
    groups = " or ".join(str(n) for n in sorted({len(layer.plan) for layer in findings.layers}))
    network = type(getattr(findings.model, "network", findings.model)).__name__
    return (
        f"{network}: {len(findings.layers)} attention layers of {heads} heads; {millions:.2f} M parameters. Analysed "
        f"for merging its heads into {groups} (Squeezing-Heads Distillation), over {findings.inputs.words}."
    )


def _maps(findings: TextFindings) -> str:
    words = (
        f"The maps of some heads over the first {len(findings.labels)} tokens of the first sequence: queries down, "
        "keys across. The fuller the colour, the more attention; one scale (square root) for each layer. Heads and "
        "layers count from 0."
    )
    parts = [paragraph(words)]
    for name in findings.shown:
        maps = findings.maps[name]
        heads = pictured_heads(maps.rows.shape[1], findings.shown_heads)
        figures = [f"<figure>{each}</figure>" for each in token_maps(maps, heads, findings.labels)]
        parts.append(f"<h3>{html.escape(name)}</h3>" + charts(figures))
    return section("Attention maps", *parts)


def _similarity(findings: TextFindings) -> str:
    words = (
        "The cosine of every two heads' maps, over all sequences; the fullest colour is 1, none the lowest. The "
        "matched plan has groups of the contiguous plan's sizes with the largest similarity inside."
    )
    titles = [f"layer {i}" for i in range(len(findings.layers))]
    headings = [("layer", ""), ("contiguous", "groups"), ("matched", "groups"), ("lowest cosine", "")]
    rows = [
        [layer.layer, _plan(layer.plan), _plan(layer.matched), f"{layer.cosines.min():.2f}"]
        for layer in findings.layers
    ]
    panels = wide(similarity_panels(findings.layers, titles))
    return section("Similar heads", paragraph(words), panels, table_html(headings, rows, tinted=-1))


def _alpha(findings: TextFindings) -> str:
    merging = [layer for layer in findings.layers if layer.alpha.shape[2]]
    if not merging:
        return section("Alpha", paragraph("With as many student heads as heads nothing is merged: there is no alpha."))
    words = (
        "The weight alpha of the first heads of each merge, in closed form for each sequence: mean and standard "
        "deviation over the sequences. A half is plain averaging; a spread means that no constant fits."
    )
    headings = [("layer", ""), ("groups", "contiguous plan"), ("alpha", "mean of each merge"),
                ("spread", "of sequences, std"), ("clamped", "share"), ("residual", "lost of the output")]  # fmt: skip
    rows = [
        [
            layer.layer,
            _plan(layer.plan),
            ", ".join(f"{value:.2f}" for value in layer.alpha[0].mean(0)),
            ", ".join(f"{value:.2f}" for value in layer.alpha[0].std(0)),
            f"{layer.clamped.mean():.1%}",
            f"{layer.residual.mean():.1%}",
        ]
        for layer in merging
    ]
    figure = wide(alpha_by_layer_figure(merging))
    return section("Alpha by layer", paragraph(words), figure, table_html(headings, rows, tinted=-1))


def _plan(plan: Plan) -> str:
    return ", ".join("+".join(map(str, group)) for group in plan)


def _footer(findings: TextFindings) -> str:
    about = {
        "command": command(),
        "numbers": "numbers.json beside this page",
        "versions": f"dit_shd {__version__}, torch {torch.__version__}, python {platform.python_version()}",
        "method": "arXiv 2502.07436, Squeezing-Heads Distillation",
    }
    return "<footer>" + facts(about) + "</footer>"
