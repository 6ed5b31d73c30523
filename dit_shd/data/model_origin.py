"""The autoencoder of an existing model's latents, by its run, folder or name; and how to sample from it."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from dit_shd.core.places import Asset, HubName, find, is_here
from dit_shd.core.pretrained import COPY, RECORD, folder_of_weights, model_folder
from dit_shd.data.autoencoder import read_autoencoder
from dit_shd.data.latent_origin import COLOURS, Origin, read_record


def of_source(source: str, channels: int) -> Origin | None:
    """The origin of the latents of a model in a run, a student's folder or a pipeline; None if they are pixels."""
    default = None if channels in COLOURS else Origin()
    path = find(source, "model") if source else Asset("")
    if isinstance(path, Asset):
        return default
    if isinstance(path, HubName):
        return _on_hub(path, default)
    path = folder_of_weights(path) or path
    recorded = read_record(path)
    if recorded is not None:
        return None if recorded.pixels else replace(recorded, places=(path / COPY, path.parent / COPY))
    folder = model_folder(path) if path.is_dir() else None
    if folder is not None and folder.name == "transformer" and (folder.parent / COPY).is_dir():  # a pipeline
        return Origin(str(folder.parent / COPY))
    return default


def other_latents(place: str, origin: Origin | None, channels: int) -> str | None:
    """Why a model has learned other latents than some are; None where it has learned those, or nobody can say.

    Args:
        place: The folder that the model was loaded from; others say nothing.
        origin: Of the latents; None if they are pixels.
        channels: Of the latents.

    Raises:
        UserError: The model's autoencoder cannot be read.
    """
    if origin is None or not place or not Path(place).is_dir():
        return None
    learned = of_source(place, channels)
    if learned is None or not learned.vae:
        return None
    if learned.vae_scaling is None and is_here(learned.vae, "autoencoder"):  # of a pipeline
        learned = Origin.of_autoencoder(learned.vae, read_autoencoder(learned.vae))
    words = f"it has learned latents of {learned.words}, and the data's are of {origin.words}"
    if None not in (learned.vae_scaling, origin.vae_scaling) and learned.vae_scaling != origin.vae_scaling:
        return f"{words}, which scales them otherwise"
    if None not in (learned.encoder_sha256, origin.encoder_sha256) and learned.encoder_sha256 != origin.encoder_sha256:
        return f"{words}, whose encoder has other weights"
    return None


def _on_hub(name: HubName, default: Origin | None) -> Origin | None:
    """The origin of a student on the hub, or of a pipeline, which has its autoencoder beside its transformer."""
    file = name.file(RECORD)
    if file is not None:
        recorded = read_record(file.parent)
        return None if recorded is None or recorded.pixels else recorded
    pipeline = name.file("config.json") is None and name.file(f"{COPY}/config.json") is not None
    return Origin(str(name)) if pipeline else default


def following(model: Path, count: int, decodes: bool, vae: str | None = None, words: Sequence[str] = ()) -> str:
    """The command that samples from a model, in lines that can be pasted.

    Args:
        model: The run or model folder.
        count: Number of images.
        decodes: Whether sampling finds the autoencoder by itself.
        vae: Otherwise its name, if it is known.
        words: More words of the command.
    """
    line = " ".join([f"next: dit-shd sample {shlex.quote(str(model))} count={count}", *words])
    if decodes or vae:
        return line if decodes else f"{line} vae={shlex.quote(str(vae))}"
    return f"{line} vae=null\n      (keeps latents; their autoencoder, vae=FOLDER or hub:OWNER/NAME, decodes them)"


def loaded_from(model: nn.Module) -> str:
    """The folder or name that a model was loaded from, as its config has it; empty where nothing says it."""
    settings: Any = getattr(model, "config", None)
    return str(settings.get("_name_or_path") or "") if isinstance(settings, Mapping) else ""


def loaded_folder(model: nn.Module) -> Path | None:
    """The folder that a model was loaded from; None where nothing says it, or it is not there."""
    place = loaded_from(model)
    return Path(place) if place and Path(place).is_dir() else None
