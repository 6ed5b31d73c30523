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


def explorer(sheets: Sheets, pictures: Sequence[bytes], token: int, timestep: int, clean: bytes | None = None) -> str:
    """The explorer of a model's maps as HTML: a layer, a timestep and a query token are chosen.

    Args:
        sheets: The maps.
        pictures: The input at each timestep as PNG, if it is a picture.
        token: The query token shown first.
        timestep: The one shown first, or the nearest to it.
        clean: The input without noise.
    """
    time = _nearest(sheets, timestep)
    query = '<canvas tabindex="0" role="img" aria-label="query token; arrow keys move it"></canvas>' + _input(clean)
    controls = _layer_chips(sheets) + _slide(sheets, time)
    return _drawn(controls, "query", query, _data(sheets, time, token, pictures))


def text_explorer(sheets: Sheets, token: int, words: Sequence[str]) -> str:
    """The explorer of a language model's maps as HTML: a layer and a query token; maps are shown whole.

    Args:
        sheets: The maps, of one timestep.
        token: The query token shown first.
        words: The text of each token.
    """
    query = '<p class="words" tabindex="0" role="img" aria-label="query token; arrow keys move it"></p>'
    return _drawn(_layer_chips(sheets), "query", query, _data(sheets, 0, token, words=words), "explorer text")


def prompt_explorer(sheets: Sheets, picture: bytes, timestep: int, prompt: Sequence[str]) -> str:
    """The explorer of a picture's maps for the words of its prompt as HTML: a word, a layer and a timestep.

    Args:
        sheets: The maps, whose query tokens are the words.
        picture: The picture as PNG; it has the maps' grid.
        timestep: The one shown first, or the nearest to it.
        prompt: The words.
    """
    time = _nearest(sheets, timestep)
    controls = _chips("word", prompt, 0) + _layer_chips(sheets) + _slide(sheets, time)
    query = '<canvas role="img" aria-label="the picture"></canvas>'
    return _drawn(controls, "word", query, _data(sheets, time, 0, [picture], prompt=prompt))


def _nearest(sheets: Sheets, timestep: int) -> int:
    """The place of the timestep that is nearest to one."""
    return int(np.abs(np.array(sheets.timesteps) - timestep).argmin())


def _data(
    sheets: Sheets,
    time: int,
    token: int,
    pictures: Sequence[bytes] = (),
    words: Sequence[str] = (),
    prompt: Sequence[str] = (),
) -> str:
    """What the page's script reads, as JSON; it tells what is explored by `words` and `prompt`."""
    data = {
        "palette": ANCHORS,
        "timesteps": sheets.timesteps,
        "groups": [{"name": name, "maps": maps} for name, maps in sheets.groups.items()],
        "layers": [_layer(layer_sheets) for layer_sheets in sheets.layers],
        "notes": [layer_sheets.notes for layer_sheets in sheets.layers],
        "pictures": [data_uri(picture) for picture in pictures],
        "words": list(words),
        "prompt": list(prompt),
        "layer": _first_layer(sheets),
        "time": time,
        "token": token,
    }
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")


def _drawn(controls: str, chosen: str, query: str, data: str, css: str = "explorer") -> str:
    """What all explorers have in common.

    Args:
        controls: What is chosen with, above.
        chosen: What the maps are of, a word.
        query: Where it is chosen or shown.
        data: What the script reads.
        css: Classes.
    """
    return (
        f'<div class="{css}">{controls}'
        f'<div class="stage"><div class="query"><h3>{chosen}: <output></output></h3>{query}</div>'
        '<div class="groups"></div>'
        '<div class="detail"><h3></h3><canvas tabindex="0" role="img" aria-label="the chosen map; arrow keys read it">'
        f'</canvas><p class="readout" role="status"></p>{bar(("", "", ""), "colours of the maps")}</div></div>'
        "<noscript><p>These maps are drawn by the page's script; the pictures beside the page show some of them.</p>"
        f'</noscript><script type="application/json">{data}</script></div>'
    )


def _first_layer(sheets: Sheets) -> int:
    """The layer shown first: the one in the middle."""
    return len(sheets.layers) // 2


def _layer_chips(sheets: Sheets) -> str:
    return _chips("layer", [short_layer(layer_sheets.layer) for layer_sheets in sheets.layers], _first_layer(sheets))


def _slide(sheets: Sheets, time: int) -> str:
    """The timesteps to choose."""
    last = len(sheets.timesteps) - 1
    return (
        f'<label class="slide">timestep <input type="range" min="0" max="{last}" value="{time}"'
        f"{' disabled' if not last else ''}><output></output></label>"
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
