"""The explorer of attention maps: a layer, a timestep, a query token and a head are chosen on the page.

Everything it shows was recorded before (analysis/map_sheets.py) and is inside the page; static/page.js draws it.
"""

import base64
import html
import json
from collections.abc import Sequence

import numpy as np

from dit_shd.analysis.map_sheets import LayerSheets, Sheets
from dit_shd.reports.figures.alpha import short_layer
from dit_shd.reports.figures.heat import ANCHORS, bar, packed
from dit_shd.reports.html import data_uri

WORDS = (
    "Choose a layer, a timestep and a query token (click on the picture, or arrow keys on it), and a map to enlarge. "
    "Bright: much attention; one scale (square root) for all maps of a choice."
)


TEXT_WORDS = (
    "Choose a layer and a query token (click on a word or on a row of a map, or arrow keys), and a map to enlarge. "
    "Bars below the words: where the query's attention goes in the chosen map. Maps: queries down, keys across; "
    "bright: much attention, one scale (square root) for all maps of a layer."
)


def explorer(
    sheets: Sheets,
    pictures: Sequence[bytes],
    token: int,
    timestep: int,
    clean: bytes | None = None,
    words: Sequence[str] = (),
    prompt: Sequence[str] = (),
) -> str:
    """The explorer as HTML.

    Args:
        sheets: The maps.
        pictures: The input at each timestep as PNG, if it is a picture.
        token: The query token shown first.
        timestep: The one shown first, or the nearest to it.
        clean: The input without noise.
        words: Of a text, each token's; maps are then shown whole, of all query tokens.
        prompt: Its words, if these are the query tokens; the one picture has the maps' grid.
    """
    time = int(np.abs(np.array(sheets.timesteps) - timestep).argmin())
    layer = len(sheets.layers) // 2
    data = {
        "palette": ANCHORS,
        "timesteps": sheets.timesteps,
        "groups": [{"name": name, "maps": maps} for name, maps in sheets.groups.items()],
        "layers": [_layer(layer_sheets) for layer_sheets in sheets.layers],
        "notes": [layer_sheets.notes for layer_sheets in sheets.layers],
        "pictures": [data_uri(picture) for picture in pictures],
        "words": list(words),
        "prompt": list(prompt),
        "layer": layer,
        "time": time,
        "token": token,
    }
    chips = _chips("layer", [short_layer(layer_sheets.layer) for layer_sheets in sheets.layers], layer)
    named = _chips("word", prompt, token) if prompt else ""
    last = len(sheets.timesteps) - 1
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    slide = (
        f'<label class="slide">timestep <input type="range" min="0" max="{last}" value="{time}"'
        f"{' disabled' if not last else ''}><output></output></label>"
    )
    query = '<canvas tabindex="0" role="img" aria-label="query token; arrow keys move it"></canvas>'
    if words:
        slide, query = "", '<p class="words" tabindex="0" role="img" aria-label="query token; arrow keys move it"></p>'
    if prompt:
        query = '<canvas role="img" aria-label="the picture"></canvas>'
    css = "explorer text" if words else "explorer"
    return (
        f'<div class="{css}">{named}{chips}{slide}'
        f'<div class="stage"><div class="query"><h3>{"word" if prompt else "query"}: <output></output></h3>{query}'
        f'{_input(clean)}</div><div class="groups"></div>'
        '<div class="detail"><h3></h3><canvas tabindex="0" role="img" aria-label="the chosen map; arrow keys read it">'
        f'</canvas><p class="readout" role="status"></p>{bar(("", "", ""), "colours of the maps")}</div></div>'
        "<noscript><p>These maps are drawn by the page's script; the pictures beside the page show some of them.</p>"
        f'</noscript><script type="application/json">{text}</script></div>'
    )


def _chips(name: str, texts: Sequence[str], chosen: int) -> str:
    """One of several to choose."""
    chips = "".join(
        f'<label class="chip"><input type="radio" name="{name}" value="{i}"{" checked" if i == chosen else ""}>'
        f"<span>{html.escape(text)}</span></label>"
        for i, text in enumerate(texts)
    )
    return f"<fieldset><legend>{name}</legend>{chips}</fieldset>"


def _input(clean: bytes | None) -> str:
    if clean is None:
        return ""
    return f'<p class="quiet">without noise</p><img class="crisp" src="{data_uri(clean)}" alt="the input" width="72">'


def _layer(sheets: LayerSheets) -> dict[str, object]:
    values = base64.b64encode(packed(np.stack(sheets.levels))).decode("ascii")
    return {
        "tokens": sheets.tokens,
        "grid": sheets.grid,
        "keys": sheets.keys,
        "pooled": sheets.pooled,
        "aligned": sheets.keys == sheets.grid,
        "tops": [float(f"{top:.6g}") for top in sheets.tops],
        "values": values,
    }
