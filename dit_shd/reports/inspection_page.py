"""The page and the pictures of `dit-shd inspect`. Heads and tokens count from 0, as in a plan of the config."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from dit_shd.analysis.inputs import DatasetInputs
from dit_shd.analysis.inspect import Findings
from dit_shd.core.environment import command
from dit_shd.reports.explorer import WORDS, explorer
from dit_shd.reports.figures.alpha import (
    NOT_MERGED,
    SHARES,
    alpha_charts,
    merge_legend,
    merges_explained,
    short_layer,
    timestep_charts,
)
from dit_shd.reports.figures.attention import maps_sheet, whole_charts
from dit_shd.reports.figures.chart import chart_row, svg_file
from dit_shd.reports.figures.heads import similarity_charts
from dit_shd.reports.figures.heat import bar
from dit_shd.reports.footer import METHOD, files_beside, page_footer, versions
from dit_shd.reports.html import Link, header, legend, paragraph, png, section, write_page
from dit_shd.reports.inspection_findings import alpha_findings, either, layer_alphas, plan_finding
from dit_shd.reports.similarity_section import similarity_section
from dit_shd.reports.tables import table_html
from dit_shd.squeezing.plans import merge_names


def picture_files(findings: Findings) -> dict[str, bytes]:
    """The pictures beside the page, for papers and slides: file name -> contents."""
    files: dict[str, bytes] = {}
    shown = {name: findings.maps[name] for name in findings.shown}
    inputs = _input_images(findings, findings.timestep)
    for name, maps in shown.items():
        plain = name.replace(".", "_").replace(":", "_").replace("#", "_")
        files[f"maps_{plain}.png"] = maps_sheet(maps, inputs)
    charts = {"maps_whole": whole_charts(shown), "similarity": similarity_charts(findings.layers)}
    alphas = layer_alphas(findings.layers, findings.timesteps)
    if alphas:
        charts["alpha_layers"] = alpha_charts(alphas)
        charts["alpha_timesteps"] = timestep_charts(alphas, _steps(findings))
    return files | {f"{name}.svg": svg_file(drawn).encode() for name, drawn in charts.items()}


def write_inspect_page(findings: Findings, files: Sequence[str], page: Path) -> None:
    """Write the page of an analysis.

    Args:
        findings: The analysis.
        files: Names of the files beside the page.
        page: The file.
    """
    body = [
        header(
            "attention",
            f"Attention of {findings.config.model}",
            [plan_finding(findings.layers), *alpha_findings(layer_alphas(findings.layers, findings.timesteps))],
            _tiles(findings),
            paragraph(_summary(findings), "quiet"),
        ),
        _maps(findings),
        _whole(findings),
        similarity_section(findings.layers, "all samples and timesteps below"),
        _alpha(findings),
        _footer(findings, files, page),
    ]
    write_page(page, f"dit_shd inspect: {findings.config.model}", body)


def _tiles(findings: Findings) -> dict[str, str]:
    millions = sum(p.numel() for p in findings.model.parameters()) / 1e6
    return {
        "M parameters": f"{millions:.2f}",
        "attention layers": f"{len(findings.layers)}",
        "heads": either([layer.heads for layer in findings.layers]),
        "heads when merged": either([len(layer.plan) for layer in findings.layers]),
        "tokens": either([layer.tokens for layer in findings.layers]),
    }


def _summary(findings: Findings) -> str:
    block = {
        "image": " Of joint text-image attention only image queries over image keys are analysed, renormalised.",
        "joint": "",
    }.get(findings.scope.block or "joint", f" Of joint text-image attention: {findings.scope.block}.")
    return (
        f"{type(findings.model).__name__}, analysed for merging its heads (Squeezing-Heads Distillation). Inputs: "
        f"{findings.inputs.words}.{block} Heads, tokens and layers count from 0, as in a plan of the config."
    )


def _steps(findings: Findings) -> int:
    return max(1000, *findings.timesteps) if max(findings.timesteps) > 100 else max(findings.timesteps) + 1


def _maps(findings: Findings) -> str:
    sheets = findings.sheets
    pictures = [_png(image) for t in sheets.timesteps for image in [*_input_images(findings, t).values()][1:]]
    clean = [_png(image) for image in [*_input_images(findings, findings.timestep).values()][:1]]
    layer = sheets.layers[len(sheets.layers) // 2]
    token = findings.maps[layer.layer].tokens[len(findings.maps[layer.layer].tokens) // 2]
    words = WORDS + " The first sample of the inputs."
    if any(layer_sheets.pooled for layer_sheets in sheets.layers):
        words += " Keys are averaged in areas, so that the page stays small."
    shown = explorer(sheets, pictures, token, findings.timestep, clean[0] if clean else None)
    return section("Attention maps", paragraph(words), shown)


def _whole(findings: Findings) -> str:
    words = (
        f"All query tokens (down) over all key tokens (across) at timestep {findings.timestep}, mean over heads; "
        "square root of each map's share of its highest value. Beyond 128 tokens, intervals of both are averaged."
    )
    charts = whole_charts({name: findings.maps[name] for name in findings.shown})
    return section(
        "All tokens", paragraph(words), chart_row(charts, small=True), bar(("0", "a quarter", "highest"), "scale")
    )


def _alpha(findings: Findings) -> str:
    alphas = layer_alphas(findings.layers, findings.timesteps)
    if not alphas:
        return section("Alpha", paragraph(NOT_MERGED))
    samples = f"{findings.layers[0].alpha.shape[1]} samples at each of {len(findings.timesteps)} timesteps"
    by_timestep = "The same against the timestep: mean over the samples; the band is one standard deviation of them."
    return section(
        "Alpha",
        paragraph(merges_explained(samples)),
        chart_row(alpha_charts(alphas)),
        paragraph(by_timestep),
        legend(merge_legend(alphas)),
        chart_row(timestep_charts(alphas, _steps(findings))),
        _merges(findings),
        paragraph(SHARES, "quiet"),
    )


def _merges(findings: Findings) -> str:
    """The table of every merge."""
    headings = [("layer", ""), ("merge", "heads"), ("alpha", "median"), ("lowest", "mean at a timestep"),
                ("highest", "mean at a timestep"), ("spread", "of samples, std"), ("clamped", "of the layer"),
                ("residual", "of the layer")]  # fmt: skip
    cells = []
    for layer in findings.layers:
        for merge, name in enumerate(merge_names(layer.plan)):
            mean = layer.alpha[..., merge].mean(1)  # [T]
            low, high = int(mean.argmin()), int(mean.argmax())
            cells.append(
                [
                    short_layer(layer.layer),
                    name,
                    f"{np.median(layer.alpha[..., merge]):.2f}",
                    f"{mean[low]:.2f} at t = {findings.timesteps[low]}",
                    f"{mean[high]:.2f} at t = {findings.timesteps[high]}",
                    f"{layer.alpha[..., merge].std(1).mean():.2f}",
                    f"{layer.clamped.mean():.1%}",
                    f"{layer.residual.mean():.1%}",
                ]
            )
    return table_html(headings, cells, tinted=-1, what="alpha of every merge")


def _input_images(findings: Findings, timestep: int) -> dict[str, np.ndarray]:
    """The first sample without and with noise; nothing if it is no image."""
    inputs = findings.inputs
    if not isinstance(inputs, DatasetInputs):
        return {}
    latents = inputs.keywords(inputs.first, timestep)["hidden_states"]
    return {"image": _pixels(inputs.x_0[0]), "with noise": _pixels(latents[0])}


def _pixels(latents: Tensor) -> np.ndarray:
    """[c,y,x] as [y,x,3] if there are three channels, else their mean [y,x]; from 0 to 1."""
    pixels = latents if len(latents) == 3 else latents.mean(0, keepdim=True)
    low, high = (-1.0, 1.0) if len(latents) in (1, 3) else (float(pixels.min()), float(pixels.max()))
    shares = ((pixels - low) / max(high - low, 1e-12)).clamp(0, 1).permute(1, 2, 0).cpu().numpy()
    return shares if len(latents) == 3 else shares[..., 0]


def _png(shares: np.ndarray) -> bytes:
    """[y,x] or [y,x,3] from 0 to 1 as PNG."""
    return png((255 * shares).round().astype(np.uint8))


def _footer(findings: Findings, files: Sequence[str], page: Path) -> str:
    config = findings.config
    about: dict[str, str | Link] = {
        "command": command(),
        "timesteps": ", ".join(map(str, findings.timesteps)),
        "samples, seed": f"{findings.layers[0].alpha.shape[1]}, {config.seed}",
        "versions": versions(),
        "method": METHOD,
    }
    return page_footer(about | files_beside(files, page), page)
