"""The page of `dit-shd inspect PIPELINE prompt=...`: which image tokens attend to which words."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dit_shd.analysis.inspect_prompt import PromptFindings
from dit_shd.core.environment import command
from dit_shd.reports.explorer import prompt_explorer
from dit_shd.reports.figures.alpha import short_layer
from dit_shd.reports.footer import page_footer, versions
from dit_shd.reports.html import Link, header, paragraph, picture, png, section, write_page
from dit_shd.reports.tables import table_html

WORDS = (
    "Choose a word, a layer and a timestep, and a head's map to enlarge. A map is the picture's grid of tokens: bright "
    "where a token gives much of its attention to the word; one scale (square root) for all maps of a choice. Below "
    "each map: the head's share of attention that goes to text."
)
BY_LAYER = "The share of the image tokens' attention that goes to text, all of it: the mean over heads."


def write_prompt_inspection(findings: PromptFindings, files: Sequence[str], page: Path) -> None:
    """Write the page.

    Args:
        findings: The findings of an analysis.
        files: Names of the files beside the page, its numbers first.
        page: The file.
    """
    image, times = png(findings.picture), findings.sheets.timesteps
    title = f"What “{findings.prompt}” attends to"
    body = [
        header("attention to words", title, [_finding(findings)], _tiles(findings)),
        section(
            "Words in the picture",
            paragraph(WORDS),
            prompt_explorer(findings.sheets, image, times[len(times) // 2], findings.words),
        ),
        section("By word", paragraph(_by_word_words(findings)), _by_word(findings)),
        section("By layer and timestep", paragraph(BY_LAYER), _by_layer(findings)),
        section("The picture", picture(image, f"the picture of “{findings.prompt}”", findings.prompt)),
        _footer(findings, page.parent / files[0], page),
    ]
    write_page(page, f"dit_shd inspect: {findings.prompt}", body)


def _all(findings: PromptFindings) -> np.ndarray:
    """Shares [layers,T,h,w]."""
    return np.stack([*findings.shares.values()])


def _finding(findings: PromptFindings) -> str:
    shares = _all(findings)
    means, text = shares.mean((0, 1, 2))[:-1], shares.sum(3).mean()
    most = findings.words[int(means.argmax())] if len(means) else findings.words[-1]
    by_word = shares[..., :-1] if len(means) else shares
    layer, _, head, _ = np.unravel_index(int(by_word.argmax()), by_word.shape)
    return (
        f"Image tokens give {text:.1%} of their attention to text, on average over layers, heads and timesteps; of the "
        f"words “{most}” gets most. The head that attends to a single word most is head {head} of layer "
        f"{short_layer([*findings.shares][int(layer)])}."
    )


def _tiles(findings: PromptFindings) -> dict[str, str]:
    layer = findings.sheets.layers[0]
    heads = len(findings.sheets.groups["heads"])
    return {
        "words": str(len(findings.words) - 1),
        "layers": str(len(findings.shares)),
        "heads": str(heads),
        "image tokens": f"{layer.key_count:,}",
        "timesteps": str(len(findings.sheets.timesteps)),
    }


def _by_word_words(findings: PromptFindings) -> str:
    return (
        f"The share of the image tokens' attention that a word gets: the mean over {len(findings.shares)} layers, all "
        "heads and timesteps; and where it is highest. Layers, heads and tokens count from 0."
    )


def _by_word(findings: PromptFindings) -> str:
    shares, names = _all(findings), [*findings.shares]
    rows = []
    for number, word in enumerate(findings.words):
        one = shares[..., number]
        layer, time, head = np.unravel_index(int(one.argmax()), one.shape)
        where = f"layer {short_layer(names[int(layer)])}, head {head}, t = {findings.sheets.timesteps[int(time)]}"
        rows.append([word, f"{one.mean():.2%}", f"{one.max():.1%}", where])
    headings = [("word", ""), ("mean share", "of attention"), ("highest", "of one head"), ("there", "")]
    return table_html(headings, rows, tinted=-1, what="attention by word")


def _by_layer(findings: PromptFindings) -> str:
    headings = [("layer", ""), *((f"t = {t}", "") for t in findings.sheets.timesteps)]
    rows = [
        [short_layer(name), *(f"{value:.1%}" for value in values.sum(2).mean(1))]
        for name, values in findings.shares.items()
    ]
    return table_html(headings, rows, tinted=-1, what="attention to text by layer and timestep")


def _footer(findings: PromptFindings, numbers: Path, page: Path) -> str:
    about: dict[str, str | Link] = {
        "command": command(),
        "model": f"{type(findings.transformer).__name__} of {findings.name}, {findings.pipeline}",
        "call": ", ".join(f"{key}={value}" for key, value in findings.call.items()),
        "numbers": Link(numbers.name, numbers),
        "versions": versions(),
    }
    return page_footer(about, page)
