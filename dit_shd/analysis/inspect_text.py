"""Analysis of a language model's attention over a text: maps of its heads, their similarity, alpha by layer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from tqdm import tqdm

from dit_shd.analysis.map_sheets import Sheets, head_sheets, spread
from dit_shd.analysis.survey import LayerMaps, LayerSurvey, Scope, layer_maps, survey
from dit_shd.analysis.text_inputs import TextInputs
from dit_shd.core.errors import UserError
from dit_shd.core.plugins import Plugin
from dit_shd.data.datasets import DATASETS
from dit_shd.data.datasets.text import Text

PICTURED_HEADS = 3
"""Heads of a layer whose maps are drawn, as in the paper's figure 1."""


@dataclass(frozen=True, eq=False)
class TextFindings:
    """The results of an analysis of a language model, from which its page is made."""

    model: nn.Module
    inputs: TextInputs
    maps: dict[str, LayerMaps]
    """Of the first tokens of the first sequence, all of them as query tokens."""
    labels: list[str]
    """The texts of these tokens."""
    layers: list[LayerSurvey]
    """Over all sequences."""
    sheets: Sheets
    """Of the first tokens: the maps of all heads, and of those merged."""
    name: str = ""
    """The model's, as it was given."""
    shown: Sequence[str] = ()
    """Layers whose maps are drawn beside the page."""
    shown_heads: list[int] | None = None
    """Which of their heads; None for three evenly spread."""


def inspect_text(
    model: nn.Module, data: Text, samples: int, seed: int, scope: Scope, heads: int | None
) -> TextFindings:
    """Analyse the attention of a language model.

    Args:
        model: In evaluation, on its device.
        data: A text in its tokens.
        samples: Sequences of it behind similarity and alpha.
        seed: The seed of their choice.
        scope: Which layers.
        heads: Student heads of the merge plan; None for half of the layer's, rounded up.

    Raises:
        UserError: A model whose attention cannot be recorded.
    """
    inputs = TextInputs.of(data, samples, seed)
    pictured = inputs.first_tokens()
    with tqdm(desc="one sequence", unit="layer") as bar:
        scope, maps = layer_maps(model, pictured, scope, 0, range(len(pictured.labels)), bar.update)
    with tqdm(total=len(inputs.batches) * len(maps), desc="all sequences", unit="layer") as bar:
        layers = survey(model, inputs, scope, [0], heads, bar.update)
    sheets = head_sheets(model, pictured, scope, maps, [0], heads)
    return TextFindings(model, inputs, maps, list(pictured.labels), layers, sheets)


def text_of(data: Plugin | None, run: Mapping[str, Any], model: str) -> Text:
    """The text on which a language model is analysed: what the config names, or what its run held out.

    Args:
        data: Of the config; a tokenizer that it does not name is the model's.
        run: The run's config; empty where there is none.
        model: Its place.

    Raises:
        UserError: There is none, or it is no text.
    """
    if data is None and isinstance(run.get("data"), Mapping):
        options = dict(run["data"])
        data = Plugin(options.pop("name"), {**options, "split": "validation"})
    if data is None:
        raise UserError(
            f"data: {model} is a language model; wanted a text, data='{{name: text, path: FILE, document: line}}', "
            "found none"
        )
    if data.name == "text":
        data = replace(data, options={"tokenizer": model, "split": "all", **data.options})
    text = DATASETS.build(data, "data")
    if not isinstance(text, Text):
        raise UserError(f"data: {model} is a language model; wanted a text, found {data.name}")
    return text


def text_numbers(findings: TextFindings) -> dict[str, Any]:
    """The numbers of the page as JSON; heads and plans count from 0, as in squeeze(plan=...)."""
    return {
        "inputs": findings.inputs.words,
        "layers": {
            layer.layer: {
                "heads": layer.heads,
                "plan": layer.plan,
                "matched_plan": layer.matched,
                "similarity": layer.cosines.round(6).tolist(),
                "alpha_mean": layer.alpha[0].mean(0).round(6).tolist(),
                "alpha_std": layer.alpha[0].std(0).round(6).tolist(),
                "clamped": float(layer.clamped[0].round(6)),
                "residual": float(layer.residual[0].round(6)),
            }
            for layer in findings.layers
        },
    }


def pictured_heads(count: int, heads: list[int] | None = None) -> list[int]:
    """The heads of a layer whose maps are drawn: those that are named, or three evenly spread, from 0.

    Args:
        count: Heads of the layer.
        heads: Their numbers.

    Raises:
        UserError: The layer has no such head.
    """
    if heads is None:
        return spread(count, PICTURED_HEADS)
    missing = [head for head in heads if not 0 <= head < count]
    if missing:
        raise UserError(f"shown_heads: wanted 0 to {count - 1}, found {missing[0]}")
    return heads
