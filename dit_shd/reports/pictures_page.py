"""Pictures of several models side by side, prompt by prompt: `dit-shd pictures`, and a section of the demo's page."""

import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dit_shd.core.environment import command
from dit_shd.data.image_sets import ImageSet
from dit_shd.reports.footer import page_footer, versions
from dit_shd.reports.html import Link, data_uri, figure, header, paragraph, png, section, write_page
from dit_shd.reports.tables import table_html

LARGEST = 256
"""Pixels of the longer side of a picture on a page; larger ones are reduced."""
SMALL = 96
"""Longest side of pictures whose pixels are kept as they are, without loss."""
QUALITY = 88
"""Of JPEG, for all others."""


@dataclass(frozen=True, eq=False)
class Pictures:
    """The pictures of one model."""

    name: str
    images: np.ndarray
    """uint8 [n,y,x,c], one for each prompt."""
    right: np.ndarray | None = None
    """Whether each shows what its prompt asks, bool [n]; None where nobody has looked."""


def pictures_section(models: Sequence[Pictures], prompts: Sequence[str], words: str) -> str:
    """A section of prompts with the pictures of every model beside each other.

    Args:
        models: In their order; the teacher first.
        prompts: One for each picture.
        words: Below the heading.
    """
    names = "".join(f"<span>{html.escape(model.name)}</span>" for model in models)
    head = f'<div class="prompt names" aria-hidden="true"><span></span>{_shots(models, names)}</div>'
    rows = "".join(_row(models, prompt, number) for number, prompt in enumerate(prompts))
    return section("Pictures", paragraph(words), f'<div class="prompts">{head}{rows}</div>')


def write_pictures_page(page: Path, sets: Mapping[str, ImageSet], count: int) -> None:
    """Write the page of several models' samples of the same prompts.

    Args:
        page: The file.
        sets: Name -> samples that `dit-shd sample prompts=...` made, of the same prompts.
        count: Pictures of each that are shown, the first ones.
    """
    numbers = np.arange(count)
    prompts = next(iter(sets.values())).prompts
    assert prompts is not None, "the command has checked it"
    models = [Pictures(name, samples.take(numbers)) for name, samples in sets.items()]
    title = f"{len(sets)} models, {count} prompts"
    words = "A row is a prompt, a column a model. Where seed and settings are the same, so is the noise of a row."
    body = [
        header("pictures", title, [_finding(sets, count)], None, *(paragraph(note) for note in _differences(sets))),
        pictures_section(models, prompts[:count], words),
        section("How the pictures were made", _settings(sets)),
        _footer(sets, page),
    ]
    write_page(page, f"dit_shd: pictures of {title}", body)


def _row(models: Sequence[Pictures], prompt: str, number: int) -> str:
    """A prompt and its pictures."""
    shots = "".join(_shot(model, prompt, number) for model in models)
    return figure(_shots(models, shots), f"pictures of “{prompt}”", prompt, "prompt")


def _shots(models: Sequence[Pictures], inner: str) -> str:
    """A row of as many columns as there are models."""
    return f'<div class="shots" style="--models: {len(models)}">{inner}</div>'


def _shot(model: Pictures, prompt: str, number: int) -> str:
    """One picture with its model's name, and whether it is right."""
    image = model.images[number]
    alt = html.escape(f"{model.name}: {prompt}", quote=True)
    crisp = ' class="crisp"' if max(image.shape[:2]) <= SMALL else ""
    name = f'<span class="model">{html.escape(model.name)}</span>'
    mark = "" if model.right is None else f"<span>{'✓ as asked' if model.right[number] else '✗ not as asked'}</span>"
    return f'<div><img src="{_encoded(image)}" alt="{alt}"{crisp}>{name}{mark}</div>'


def _encoded(image: np.ndarray) -> str:
    """A picture uint8 [y,x,c] for a page: small ones as they are, others reduced and as JPEG."""
    picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    if max(picture.size) <= SMALL:
        return data_uri(png(picture))
    stream = io.BytesIO()
    picture.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    picture.save(stream, format="JPEG", quality=QUALITY)
    return data_uri(stream.getvalue(), "image/jpeg")


def _finding(sets: Mapping[str, ImageSet], count: int) -> str:
    some = next(iter(sets.values()))
    sizes = {name: f"{width} x {height}" for name, (_, height, width, _) in ((n, s.shape) for n, s in sets.items())}
    one = len(set(sizes.values())) == 1
    listed = ", ".join(sizes if one else (f"{name} ({size})" for name, size in sizes.items()))
    shown = f"the first {count} of {some.shape[0]:,} prompts" if count < some.shape[0] else f"all {count} prompts"
    return f"Pictures{f' of {sizes[next(iter(sizes))]}' if one else ''} by {listed}: {shown}, none chosen."


def _differences(sets: Mapping[str, ImageSet]) -> list[str]:
    """A sentence for each setting of the sampler in which the models differ."""
    values = {name: _of_sampler(samples) for name, samples in sets.items()}
    keys = {key: None for settings in values.values() for key in settings}
    notes = []
    for key in keys:
        texts = {name: settings.get(key, "the default") for name, settings in values.items()}
        if len(set(texts.values())) > 1:
            listed = ", ".join(f"{name} {text}" for name, text in texts.items())
            notes.append(f"Sampled with different {key}: {listed}.")
    return notes


def _of_sampler(samples: ImageSet) -> dict[str, str]:
    """The settings that decide on noise and steps, as texts; those of the pipeline's call one by one."""
    sidecar = samples.sidecar or {}
    known: dict[str, Any] = {key: sidecar[key] for key in ("seed", "precision", "pipeline") if key in sidecar}
    return {key: str(value) for key, value in (known | dict(sidecar.get("call", {}))).items()}


def _settings(sets: Mapping[str, ImageSet]) -> str:
    values = {name: _of_sampler(samples) for name, samples in sets.items()}
    keys = list({key: None for settings in values.values() for key in settings})
    rows = [[name, *(settings.get(key, "") for key in keys)] for name, settings in values.items()]
    return table_html([("model", ""), *((key, "") for key in keys)], rows, what="how the pictures were made")


def _footer(sets: Mapping[str, ImageSet], page: Path) -> str:
    about: dict[str, str | Link] = {"command": command()}
    for name, samples in sets.items():
        assert samples.path is not None, "samples that have prompts are a file"
        about[f"samples of {name}"] = Link(str(samples.path), samples.path.absolute())
    about["versions"] = versions()
    return page_footer(about, page)
