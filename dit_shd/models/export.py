"""Exports: a model in diffusers format with its card, and with the training step it is of."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers import ModelMixin

from dit_shd.core.files import atomic_folder
from dit_shd.core.json_files import read_object
from dit_shd.core.places import HubName, find
from dit_shd.core.pretrained import TRAINING, config_of_run, folder_of_weights
from dit_shd.core.run_files import STUDENT
from dit_shd.core.yaml_files import parse_yaml, read_yaml
from dit_shd.data.latent_origin import Origin, write_record
from dit_shd.data.pipeline_record import PipelineRecord
from dit_shd.models import cards
from dit_shd.models.cards import RunFacts

OF_TASK = ("timesteps", "timestep_density", "label_dropout", "text_dropout")
"""Keys of a task by which its models are sampled."""
OF_LOSS = ("name", "guidance")
"""Keys of a loss that say that the student learned a guided prediction."""


def export(model: ModelMixin, folder: Path, facts: RunFacts, step: int, rate: float, share: float) -> None:
    """Write a trained model with its card; it replaces the previous export atomically.

    Args:
        model: With averaged weights.
        folder: To be written.
        facts: The facts of the run.
        step: The training step of the weights.
        rate: Decay rate of the average that the weights are.
        share: Share of the first weights in that average.
    """
    training = {
        "step": step,
        "ema": rate,
        "share_of_first_weights": share,
        **for_sampling(parse_yaml(facts.config) or {}),
    }
    card = cards.trained(model, facts, step, rate, share)
    write(model, folder, card, facts.latents, training, facts.pipeline)


def write(
    model: ModelMixin,
    folder: Path,
    card: str,
    latents: Origin | None = None,
    training: Mapping[str, Any] | None = None,
    pipeline: PipelineRecord | None = None,
) -> None:
    """Write a model in diffusers format with a model card; it replaces the folder's contents atomically.

    Args:
        model: To be saved.
        folder: To be written.
        card: The text of README.md.
        latents: The autoencoder of its latents; None for pixels.
        training: The contents of training.json, if any.
        pipeline: The pipeline of text-to-image models.
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


def for_sampling(run: Mapping[str, Any]) -> dict[str, Any]:
    """What sampling must know of a run, wherever the student is, for training.json: of its task, and guided losses.

    Args:
        run: The values of its config.
    """
    task, losses = run.get("task"), run.get("losses")
    known = {key: task[key] for key in OF_TASK if key in task} if isinstance(task, dict) else {}
    named = [loss for loss in losses if isinstance(loss, dict)] if isinstance(losses, list) else []
    guided = [{key: loss.get(key) for key in OF_LOSS} for loss in named if loss.get("guidance") is not None]
    return {**({"task": known} if known else {}), **({"losses": guided} if guided else {})}


def run_values(place: str) -> dict[str, Any]:
    """The values of the config.yaml of a run, or of the run that a student's folder is in; what others record of it.

    Args:
        place: A run or model, or the file of its weights; empty for none.
    """
    file = config_of_run(place)
    return (read_yaml(file) if file is not None else {}) or exported_values(place)


def exported_values(source: str) -> dict[str, Any]:
    """What an export records of its run; empty where it records nothing.

    Args:
        source: A student's folder, also below the one that is named, or hub:OWNER/NAME.
    """
    place = folder_of_weights(Path(source)) or Path(source)
    files = [place / TRAINING, place / STUDENT / TRAINING]
    if source.startswith("hub:"):
        name = find(source, "model")
        files = [name.file(TRAINING)] if isinstance(name, HubName) else []
    contents = (read_object(file) for file in files if file is not None)
    return for_sampling(next((content for content in contents if content is not None), {}))


def exported_step(folder: Path) -> int | None:
    """The training step of an export; None where there is none, or its training.json is not readable."""
    try:
        return int((read_object(folder / TRAINING) or {})["step"])
    except (ValueError, KeyError, TypeError):
        return None
