"""The page of `dit-shd inspect` for a language model. Heads and tokens count from 0, as in a plan of the config."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from dit_shd.analysis.inspect_text import TextFindings, pictured_heads
from dit_shd.core.environment import command
from dit_shd.reports.explorer import TEXT_WORDS, text_explorer
from dit_shd.reports.figures.alpha import NOT_MERGED, SHARES, LayerAlpha, alpha_charts, merges_explained
from dit_shd.reports.figures.chart import chart_row, svg_file
from dit_shd.reports.figures.heads import similarity_charts
from dit_shd.reports.figures.token_maps import legible, token_maps_figure
from dit_shd.reports.footer import METHOD, files_beside, page_footer, versions
from dit_shd.reports.html import Link, header, paragraph, section, write_page
from dit_shd.reports.inspection_findings import alpha_findings, either, layer_alphas, plan_finding
from dit_shd.reports.similarity_section import similarity_section
from dit_shd.reports.tables import table_html

HEADINGS = [
    ("layer", ""), ("merge", "heads"), ("alpha", "median"), ("lowest", "of the sequences"),
    ("highest", "of the sequences"), ("spread", "of the sequences, std"), ("clamped", "of the layer"),
    ("residual", "of the layer"),
]  # fmt: skip


def text_pictures(findings: TextFindings) -> dict[str, bytes]:
    """The pictures beside the page, for papers and slides: file name -> contents."""
    files: dict[str, bytes] = {}
    for name in findings.shown:
        maps = findings.maps[name]
        heads = pictured_heads(maps.rows.shape[1], findings.shown_heads)
        plain = name.replace(".", "_").replace(":", "_").replace("#", "_")
        files[f"maps_{plain}.svg"] = token_maps_figure(maps, heads, findings.labels).encode()
    files["similarity.svg"] = svg_file(similarity_charts(findings.layers)).encode()
    alphas = layer_alphas(findings.layers, [0])
    return files | ({"alpha_layers.svg": svg_file(alpha_charts(alphas)).encode()} if alphas else {})


def write_text_inspection(findings: TextFindings, files: Sequence[str], page: Path) -> None:
    """Write the page.

    Args:
        findings: The findings of an analysis.
        files: Names of the files beside the page.
        page: The file.
    """
    findings = _with_short_names(findings)
    alphas = layer_alphas(findings.layers, [0])
    body = [
        header(
            "attention",
            f"Attention of {findings.name}",
            [plan_finding(findings.layers), *alpha_findings(alphas)],
            _tiles(findings),
            paragraph(_summary(findings), "quiet"),
        ),
        _maps(findings),
        similarity_section(findings.layers, "all sequences"),
        _alpha(findings, alphas),
        _footer(files, page),
    ]
    write_page(page, f"dit_shd inspect: {findings.name}", body)


def short_names(layers: Sequence[str]) -> dict[str, str]:
    """Names of layers without what all begin and end with: h.0.attn as h.0.

    Args:
        layers: Names with dots.
    """
    parts = [name.split(".") for name in layers]
    if len(parts) < 2:
        return {name: name for name in layers}
    first, last = (_alike([part[::way] for part in parts]) for way in (1, -1))
    short = [".".join(part[max(0, first - 1) : len(part) - last]) for part in parts]
    return dict(zip(layers, short if all(short) and len(set(short)) == len(short) else layers))


def _alike(parts: Sequence[Sequence[str]]) -> int:
    """How many of their first parts all names share."""
    same = [len(set(names)) == 1 for names in zip(*parts)]
    return [*same, False].index(False)


def _with_short_names(findings: TextFindings) -> TextFindings:
    short = short_names([layer.layer for layer in findings.layers])
    sheets = [replace(sheet, layer=short[sheet.layer]) for sheet in findings.sheets.layers]
    return replace(
        findings,
        layers=[replace(layer, layer=short[layer.layer]) for layer in findings.layers],
        sheets=replace(findings.sheets, layers=sheets),
    )


def _tiles(findings: TextFindings) -> dict[str, str]:
    millions = sum(p.numel() for p in findings.model.parameters()) / 1e6
    return {
        "M parameters": f"{millions:.2f}",
        "attention layers": f"{len(findings.layers)}",
        "heads": either([layer.heads for layer in findings.layers]),
        "heads when merged": either([len(layer.plan) for layer in findings.layers]),
        "sequences": f"{len(findings.inputs.sequences):,}",
    }


def _summary(findings: TextFindings) -> str:
    network = type(getattr(findings.model, "network", findings.model)).__name__
    return (
        f"{network}, analysed for merging its heads (Squeezing-Heads Distillation), over {findings.inputs.words}. "
        "Heads, tokens and layers count from 0, as in a plan of the config."
    )


def _maps(findings: TextFindings) -> str:
    words = f"{TEXT_WORDS} The first {len(findings.labels)} tokens of the first sequence."
    labels = [legible(label) for label in findings.labels]
    return section("Attention maps", paragraph(words), text_explorer(findings.sheets, len(labels) - 1, labels))


def _alpha(findings: TextFindings, alphas: Sequence[LayerAlpha]) -> str:
    if not alphas:
        return section("Alpha", paragraph(NOT_MERGED))
    cells = []
    for layer, alpha in ((one, two) for one in findings.layers for two in alphas if one.layer == two.layer):
        for merge, values in zip(alpha.merges, alpha.alpha.T):
            numbers = [np.median(values), values.min(), values.max(), values.std()]
            shares = [f"{layer.clamped.mean():.1%}", f"{layer.residual.mean():.1%}"]
            cells.append([layer.layer, merge, *(f"{value:.2f}" for value in numbers), *shares])
    return section(
        "Alpha",
        paragraph(merges_explained(f"{len(findings.inputs.sequences)} sequences")),
        chart_row(alpha_charts(alphas)),
        table_html(HEADINGS, cells, tinted=-1, what="alpha of every merge"),
        paragraph(SHARES, "quiet"),
    )


def _footer(files: Sequence[str], page: Path) -> str:
    about: dict[str, str | Link] = {"command": command(), "versions": versions(), "method": METHOD}
    return page_footer(about | files_beside(files, page), page)
