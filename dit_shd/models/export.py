"""Writing a model in diffusers format with its card."""

import re
from pathlib import Path
from typing import Any

from dit_shd.core.files import replacing
from dit_shd.data.latent_origin import Origin, read_record, write_record
from dit_shd.models import cards
from dit_shd.models.provenance import inherited, provenance


def export(model: Any, folder: Path, config: Any, step: int, rate: float, share: float) -> None:
    """Write a trained model with a card, replacing the last: a reader sees one of the two, whole.

    Args:
        rate: of the average that its weights are. share: of the first weights in it.
    """
    origin = inherited([] if config.teacher is None else [provenance(config.teacher)])
    latents = read_record(Path(config.run))
    write(model, folder, cards.trained(model, config, step, origin, rate, share, latents), latents)


def write(model: Any, folder: Path, card: str, latents: Origin | None = None) -> None:
    """Write a model in diffusers format with a model card, replacing the last.

    Args:
        latents: of which autoencoder they are.
    """
    with replacing(folder) as part:
        model.save_pretrained(part, safe_serialization=True)
        (part / "README.md").write_text(card, encoding="utf-8", errors="backslashreplace")
        if latents is not None:
            write_record(latents, part)


def exported_step(folder: Path) -> int | None:
    """The training step that the model card of an export tells; None where there is none."""
    try:
        card = (folder / "README.md").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    found = re.search(r"^Trained by dit_shd for (\d+) steps", card, re.MULTILINE)
    return int(found[1]) if found else None
