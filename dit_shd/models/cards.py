"""The text of model cards."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import yaml
from torch import nn

from dit_shd.core.errors import one_line
from dit_shd.data.latent_origin import Origin
from dit_shd.data.pipeline_record import PipelineRecord
from dit_shd.models.prediction import convention_of, prediction_of
from dit_shd.models.provenance import LISTS, PERMISSIVE, Provenance, union
from dit_shd.models.shape import shape_of

LOAD = '`dit_shd.load("this folder")`'
SHOWN = 20
"""Classes that a card names."""


@dataclass(frozen=True)
class RunFacts:
    """What the cards of a run's models say about their training."""

    config: str
    """The run's config as YAML."""
    ema_warmup: bool
    """Whether the decay rates of the averages were warmed up."""
    dataset: str
    """Name and source of the data in one line."""
    origin: Provenance
    """Of the teachers."""
    latents: Origin | None = None
    """The autoencoder of the latents; None for pixels."""
    pipeline: PipelineRecord | None = None
    """The pipeline of text-to-image models."""


def metadata(origin: Provenance) -> dict[str, str]:
    """Provenance as the metadata of a safetensors file, whose values are texts; provenance.of_file reads it."""
    lists = {key: "\n".join(getattr(origin, key)) for key in LISTS}
    return {k: v for k, v in {"format": "pt", "license": origin.license or "", **lists}.items() if v}


def trained(model: nn.Module, facts: RunFacts, step: int, rate: float, share: float) -> str:
    """The card of a model that dit_shd trained.

    Args:
        model: For its class, its classes and its number of parameters.
        facts: The facts of the run.
        step: Number of training steps.
        rate: Decay rate of the average that the weights are.
        share: Share of the first weights in that average.
    """
    weights = {
        "weights": "average",
        "steps": step,
        "ema": rate,
        "ema_warmup": facts.ema_warmup,
        "share_of_first_weights": float(f"{share:.4g}"),
    }
    average = (
        f"their average over training (ema {rate}{', warmed up' if facts.ema_warmup else ''}), {share:.2%} of which "
        "are those it began with"
    )
    return _text(
        model,
        replace(facts.origin, trained_on=union([[facts.dataset], facts.origin.trained_on])),
        f"Trained by dit_shd for {step} steps. The weights are {average if rate else 'those of the last one'}. "
        f"{_opened(model)}",
        f"{_prediction(model)}{_classes(model)}{autoencoder_section(facts.latents)}{_pipeline(facts.pipeline)}"
        f"## Configuration\n\n```yaml\n{facts.config}```\n",
        {"training": weights},
    )


def of_pipeline(card: str, arguments: str = "") -> str:
    """The card of a whole pipeline, by that of the model which is its transformer.

    Args:
        card: Its text.
        arguments: What else its from_pretrained is to be given, as ", text_encoder_3=None".
    """
    whole = f'`DiffusionPipeline.from_pretrained("this folder"{arguments})`; {LOAD} gives its transformer alone'
    return card.replace("library_name: dit_shd\n", "library_name: diffusers\n", 1).replace(LOAD, whole, 1)


def _opened(model: nn.Module) -> str:
    """How the folder is loaded: by the library that its format is of, and here."""
    return f"Load: {' or '.join([*(f'`{code}`' for code in getattr(model, 'opened_by', ())), LOAD])}."


def _prediction(model: nn.Module) -> str:
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


def _classes(model: nn.Module) -> str:
    """The section on the trained classes; empty where the model's config does not name classes."""
    names = shape_of(model).class_names
    if names is None:
        return ""
    trained = [f"{i} {one_line(name)}".strip() for i, name in enumerate(names) if name is not None]
    listed = ", ".join(trained[:SHOWN]) + (", ... (config.json has all of them)" if len(trained) > SHOWN else "")
    return f"## Classes\n\n{len(trained)} of {len(names)} were trained: {listed}.\n\n"


def autoencoder_section(latents: Origin | None) -> str:
    """The card's section on the autoencoder; empty for a model of pixels."""
    if latents is None or latents.pixels:
        return ""
    if not latents.vae:
        return "## Autoencoder\n\nIt makes latents, and the data did not tell of which autoencoder.\n\n"
    digest = f"; the sha256 of its tensors is {latents.vae_sha256}" if latents.vae_sha256 else ""
    return (
        f"## Autoencoder\n\nIt makes latents of {latents.vae}{digest}. `dit-shd sample` decodes with the copy in the "
        "run folder (`vae/`), or with the one of that name if it is the same.\n\n"
    )


def _pipeline(record: PipelineRecord | None) -> str:
    """The section on the pipeline of a text-to-image model; empty for other models."""
    if record is None:
        return ""
    tokens = "" if record.text_tokens is None else f"prompts of {record.text_tokens} tokens (max_sequence_length)"
    size = "" if record.size is None else f"images of {record.words_of_sizes} pixels (height, width)"
    scale = "" if record.guidance is None else f"the guidance scale {record.guidance:g}"
    learned = " and ".join(filter(None, (tokens, size, scale)))
    sentence = f" It learned {learned}: plain diffusers has to be told." if learned else ""
    return (
        f"## Pipeline\n\nIt replaces the transformer of {record.title}, a {record.pipeline_class}, and was "
        f"trained with its text encoders (sha256 {record.text_sha256}).{sentence} `dit-shd sample RUN prompts=FILE` "
        "draws with it; `dit-shd pipeline RUN OUT` makes a folder for `DiffusionPipeline.from_pretrained`.\n\n"
    )


def converted(model: nn.Module, source: str, sha256: str, origin: Provenance, latents: Origin | None = None) -> str:
    """The card of a model that was converted from a file or folder.

    Args:
        model: For its class and number of parameters.
        source: The file or folder.
        sha256: The sha256 of the model's tensors.
        origin: The origin of the weights.
        latents: The autoencoder of the latents; None for pixels.
    """
    return _text(
        model,
        origin,
        f"Converted by dit_shd from {source}; the sha256 of its tensors is {sha256}. {_opened(model)}",
        f"{_prediction(model)}{_classes(model)}{autoencoder_section(latents)}",
    )


def _text(model: nn.Module, origin: Provenance, first: str, last: str, more: Mapping[str, Any] | None = None) -> str:
    head: dict[str, Any] = {"library_name": getattr(model, "library", "dit_shd")}
    if origin.license is not None:
        head["license"] = origin.license
    if origin.only_name is not None:  # as the hub has it
        head |= {k: text for k, text in zip(("license_name", "license_link"), origin.only_name) if text}
    head["tags"] = [*getattr(model, "card_tags", ("diffusion",)), "knowledge-distillation"]
    head |= more or {}
    head |= {key: list(getattr(origin, key)) for key in LISTS if getattr(origin, key)}
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    sections = [
        f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---",
        f"# {type(model).__name__}, {millions:.2f} M parameters\n\n{first}",
        f"## Licence\n\n{licence_text(origin)}",
    ]
    for title, items in (("Made from", origin.learned_from), ("Data", origin.trained_on)):
        if items:
            sections.append(f"## {title}\n\n" + "\n".join(f"- {item}" for item in items))
    return "\n\n".join([*sections, last]).rstrip() + "\n"


def licence_text(origin: Provenance) -> str:
    """What the licence means for users of the weights."""
    if origin.license is None:
        return "No model's licence is inherited: whoever trained these weights chooses one."
    if origin.license == "unknown":
        return "Unknown: nothing says under which licence the models behind these weights are. Ask their makers."
    if origin.license in PERMISSIVE:
        return f"{origin.license}, as the models behind these weights are."
    rule = "no commercial use" if origin.noncommercial else "their licences bind what is made of these weights"
    if origin.forbids_derivatives:
        rule += "; it forbids to pass on what is made of them, and these weights are: keep them to yourself"
    named = "; ".join(": ".join(filter(None, texts)) for texts in origin.named)
    several = f" ({named})" if named else ""
    return f"{origin.license}{several}, inherited from the models behind these weights: {rule}."
