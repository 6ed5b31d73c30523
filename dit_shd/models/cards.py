"""The words of a model card."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import yaml

from dit_shd.core.errors import UserError, one_line
from dit_shd.core.yaml_files import dump
from dit_shd.data.datasets import DATASETS
from dit_shd.data.latent_origin import Origin
from dit_shd.models.prediction import convention_of, prediction_of
from dit_shd.models.provenance import LISTS, PERMISSIVE, Provenance, union

SHOWN = 20
"""Classes that a card names."""


def metadata(origin: Provenance) -> dict[str, str]:
    """For the head of a safetensors file, whose values are texts; of_file reads it."""
    lists = {key: "\n".join(getattr(origin, key)) for key in LISTS}
    return {k: v for k, v in {"format": "pt", "license": origin.license or "", **lists}.items() if v}


def trained(
    model: Any,
    config: Any,
    step: int,
    origin: Provenance,
    rate: float,
    share: float,
    latents: Origin | None = None,
) -> str:
    """The card of a model that dit_shd trained.

    Args:
        origin: of what it learned from. rate: of the average that its weights are.
        share: of the first weights in it.
        latents: of which autoencoder they are; None: pixels.
    """
    weights = {
        "weights": "average",
        "steps": step,
        "ema": rate,
        "ema_warmup": config.ema_warmup,
        "share_of_first_weights": float(f"{share:.4g}"),
    }

    data = _data(config.data)
    return _text(
        model,
        replace(origin, trained_on=union([[data], origin.trained_on])),
        f"Trained by dit_shd for {step} steps. The weights are their average over training (ema {rate}"
        f"{', warmed up' if config.ema_warmup else ''}), {share:.2%} of which are those it began with. "
        'Load: `dit_shd.models.load("this folder")`.',
        f"{_prediction(model)}{_classes(model)}{autoencoder_words(latents)}"
        f"## Configuration\n\n```yaml\n{dump(config)}```\n",
        {"training": weights},
    )


def _prediction(model: Any) -> str:
    """The section on what a model of velocities predicts; nothing for one that predicts noise."""
    convention = convention_of(model)
    if convention is None:
        return ""
    noise, data = convention.noise_at, 1 - convention.noise_at
    time = "its time" if convention.scale == 1 else f"{convention.scale:g} times its time"
    return (
        f"## Prediction\n\nA velocity of rectified flow, {prediction_of(model)}: noise is at time {noise}, data are at "
        f"{data}, and the velocity is the derivative along that time. The model is given {time}.\n\n"
    )


def _classes(model: Any) -> str:
    """The section on the classes that the training saw; nothing where it saw all of them and they have no names."""
    names = model.config.get("class_names")
    if names is None:
        return ""
    seen = [f"{i} {one_line(name)}".strip() for i, name in enumerate(names) if name is not None]
    listed = ", ".join(seen[:SHOWN]) + (", ... (config.json has all of them)" if len(seen) > SHOWN else "")
    return f"## Classes\n\n{len(seen)} of {len(names)} were trained: {listed}.\n\n"


def autoencoder_words(latents: Origin | None) -> str:
    """The card's section about the autoencoder; empty where latents are pixels."""
    if latents is None:
        return ""
    if not latents.vae:
        return "## Autoencoder\n\nIt makes latents, and the data did not tell of which autoencoder.\n\n"
    told = f"; the sha256 of its tensors is {latents.vae_sha256}" if latents.vae_sha256 else ""
    return (
        f"## Autoencoder\n\nIt makes latents of {latents.vae}{told}. `dit-shd sample` decodes with the copy in the run "
        "folder (`vae/`), or with the one of that name if it is the same.\n\n"
    )


def converted(model: Any, source: str, sha256: str, origin: Provenance, latents: Origin | None = None) -> str:
    """The card of a model that was read from a file or folder of others."""
    return _text(
        model,
        origin,
        f"Converted by dit_shd from {source}; the sha256 of its tensors is {sha256}. "
        'Load: `dit_shd.models.load("this folder")`.',
        autoencoder_words(latents),
    )


def _data(plugin: Any) -> str:
    """A dataset in words."""
    cls: Any = DATASETS.find(plugin.name)
    try:
        return cls.described(**plugin.options)
    except UserError:  # it has been moved away since the training began
        return super(cls, cls).described(**plugin.options)


def _text(model: Any, origin: Provenance, first: str, last: str, more: Mapping[str, Any] | None = None) -> str:
    head: dict[str, Any] = {"library_name": "dit_shd"}
    if origin.license is not None:
        head["license"] = origin.license
    head["tags"] = ["diffusion", "knowledge-distillation"]
    head |= more or {}
    head |= {key: list(getattr(origin, key)) for key in LISTS if getattr(origin, key)}
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---",
        f"# {type(model).__name__}, {millions:.2f} M parameters\n\n{first}",
        f"## Licence\n\n{licence_words(origin)}",
    ]
    for title, items in (("Made from", origin.learned_from), ("Data", origin.trained_on)):
        if items:
            parts.append(f"## {title}\n\n" + "\n".join(f"- {item}" for item in items))
    return "\n\n".join([*parts, last]).rstrip() + "\n"


def licence_words(origin: Provenance) -> str:
    """What the licence means for whoever takes the weights."""
    if origin.license is None:
        return "No model's licence is inherited: whoever trained these weights chooses one."
    if origin.license == "unknown":
        return "Unknown: nothing says under which licence the models behind these weights are. Ask their makers."
    if origin.license in PERMISSIVE:
        return f"{origin.license}, as the models behind these weights are."
    rule = "no commercial use" if origin.noncommercial else "their licences bind what is made of these weights"
    return f"{origin.license}, inherited from the models behind these weights: {rule}."
