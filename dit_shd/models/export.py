"""Exports: a model in diffusers format with its card, and with the training step it is of."""

import json
from collections.abc import Mapping
from pathlib import Path

from diffusers import ModelMixin

from dit_shd.core.files import atomic_folder
from dit_shd.data.latent_origin import Origin, write_record
from dit_shd.data.pipeline_record import PipelineRecord
from dit_shd.models import cards
from dit_shd.models.cards import RunFacts

TRAINING = "training.json"
"""File of an exported student with its training step."""


def export(model: ModelMixin, folder: Path, facts: RunFacts, step: int, rate: float, share: float) -> None:
    """Write a trained model with its card; it replaces the previous export atomically.

    Args:
        model: With averaged weights.
        folder: To be written.
        facts: Of the run.
        step: The training step of the weights.
        rate: Decay rate of the average that the weights are.
        share: Share of the first weights in that average.
    """
    training = {"step": step, "ema": rate, "share_of_first_weights": share}
    card = cards.trained(model, facts, step, rate, share)
    write(model, folder, card, facts.latents, training, facts.pipeline)


def write(
    model: ModelMixin,
    folder: Path,
    card: str,
    latents: Origin | None = None,
    training: Mapping[str, float] | None = None,
    pipeline: PipelineRecord | None = None,
) -> None:
    """Write a model in diffusers format with a model card; it replaces the folder's contents atomically.

    Args:
        model: To be saved.
        folder: To be written.
        card: The text of README.md.
        latents: The autoencoder of its latents; None for pixels.
        training: The contents of training.json, if any.
        pipeline: Of text-to-image models.
    """
    with atomic_folder(folder) as part:
        model.save_pretrained(part, safe_serialization=True)
        (part / "README.md").write_text(card, encoding="utf-8", errors="backslashreplace")
        if latents is not None:
            write_record(latents, part)
        if pipeline is not None:
            pipeline.write(part)
        if training is not None:
            (part / TRAINING).write_text(json.dumps(dict(training), indent=1) + "\n", encoding="utf-8")


def exported_step(folder: Path) -> int | None:
    """The training step of an export; None where there is none, or its training.json is not readable."""
    try:
        return int(json.loads((folder / TRAINING).read_text(encoding="utf-8"))["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
