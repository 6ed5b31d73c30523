"""The explorer and the charts of a model as large as any: the page stays below 3 MB."""

import json
import re
import zlib
from base64 import b64decode

import numpy as np

from dit_shd.analysis.map_sheets import LayerSheets, Sheets, extent
from dit_shd.analysis.survey import LayerSurvey
from dit_shd.reports.explorer import explorer
from dit_shd.reports.figures.alpha import LayerAlpha, alpha_charts, timestep_charts
from dit_shd.reports.figures.chart import chart_row
from dit_shd.reports.figures.heads import similarity_charts
from dit_shd.squeezing.plans import contiguous, merge_names

LAYERS, HEADS, TOKENS = 57, 24, 4096
"""As FLUX has."""


def sheets(layers: int, heads: int, tokens: int) -> Sheets:
    """Maps of random bytes, which zlib cannot make smaller."""
    r = np.random.default_rng(0)
    maps, side = heads + heads // 2, round(tokens**0.5)
    size = extent(layers, 10, maps, tokens, tokens)
    kept = []
    for i in range(size.layers):
        layer = LayerSheets.begin(f"blocks.{i}.attn", tokens, tokens, ((side, side), (side, side)), size)
        shape = len(layer.tokens), maps, layer.keys[0] * layer.keys[1]
        for _ in range(size.timesteps):
            layer.levels.append(r.integers(0, 256, shape, dtype=np.uint8))
            layer.tops.append(0.5)
            layer.notes.append([""] * heads + ["0.50 A0 + 0.50 A1"] * (heads // 2))
        kept.append(layer)
    names = {"heads": [f"head {i}" for i in range(heads)], "merged heads": [str(i) for i in range(heads // 2)]}
    return Sheets(list(range(50, 50 + 100 * size.timesteps, 100)), names, kept)


def test_the_largest_models_fit_a_page():
    r = np.random.default_rng(0)
    plan = contiguous(HEADS, HEADS // 2)
    surveys, alphas = [], []
    for i in range(LAYERS):
        cosines, alpha = r.random((HEADS, HEADS)), r.random((160, HEADS // 2))
        nothing = np.zeros((10, 16, HEADS // 2))
        name = f"blocks.{i}.attn"
        surveys.append(LayerSurvey(name, TOKENS, cosines, plan, plan, nothing, np.zeros(10), np.zeros(10)))
        alphas.append(LayerAlpha(name, merge_names(plan), alpha, np.repeat(np.arange(10) * 100, 16)))
    parts = [chart_row(drawn) for drawn in (similarity_charts(surveys), alpha_charts(alphas), timestep_charts(alphas))]
    parts.append(explorer(sheets(LAYERS, HEADS, TOKENS), [], 0, 300))
    assert sum(map(len, parts)) < 2_850_000, [len(part) for part in parts]


def test_what_the_page_holds_are_the_maps_in_the_order_that_the_script_reads():
    kept = sheets(2, 4, 16)
    text = re.search(r'<script type="application/json">(.*)</script>', explorer(kept, [], 3, 260))[1]
    data = json.loads(text)
    assert data["timesteps"][data["time"]] == 250 and data["token"] == 3
    assert [group["name"] for group in data["groups"]] == ["heads", "merged heads"]
    for layer, read in zip(kept.layers, data["layers"]):
        levels = np.frombuffer(zlib.decompress(b64decode(read["values"])), np.uint8)
        assert np.array_equal(levels.reshape(len(kept.timesteps), len(layer.tokens), 6, -1), np.stack(layer.levels))
        assert read["aligned"] and not read["pooled"] and read["grid"] == [4, 4]


def test_names_cannot_end_the_data():
    kept = sheets(1, 2, 4)
    kept.groups["</script><b>"] = ["x"]
    assert "</script><b>" not in explorer(kept, [], 0, 0)
