"""Writing a model in diffusers format with its card."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dit_shd.core.files import atomic_folder
from dit_shd.data.latent_origin import Origin, read_record, write_record
from dit_shd.models import cards
from dit_shd.models.provenance import inherited, provenance

TRAINING = "training.json"
"""Of which step of its run an exported student is."""


def export(model: Any, folder: Path, config: Any, step: int, rate: float, share: float) -> None:
    """Write a trained model with a card, replacing the last: a reader sees one of the two, whole.

    Args:
        rate: of the average that its weights are. share: of the first weights in it.
    """
    origin = inherited([provenance(place) for place in config.teachers.values()])
    latents = read_record(Path(config.run))
    card = cards.trained(model, config, step, origin, rate, share, latents)
    write(model, folder, card, latents, {"step": step, "ema": rate, "share_of_first_weights": share})


def write(
    model: Any, folder: Path, card: str, latents: Origin | None = None, training: Mapping[str, Any] | None = None
) -> None:
    """Write a model in diffusers format with a model card, replacing the last.

    Args:
        latents: of which autoencoder they are. training: of which step of a run it is, for training.json.
    """
    with atomic_folder(folder) as part:
        model.save_pretrained(part, safe_serialization=True)
        (part / "README.md").write_text(card, encoding="utf-8", errors="backslashreplace")
        if latents is not None:
            write_record(latents, part)
        if training is not None:
            (part / TRAINING).write_text(json.dumps(dict(training), indent=1) + "\n", encoding="utf-8")


def exported_step(folder: Path) -> int | None:
    """The training step of an export; None where it does not say, or there is none."""
    try:
        return int(json.loads((folder / TRAINING).read_text(encoding="utf-8"))["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
