"""Of which autoencoder the latents of a run are: training keeps it, and sampling decodes with it.

RUN/autoencoder.json   its name, sha256 and scaling, of runs on latents; exported students have it beside them, too
RUN/vae/               itself, in diffusers format

A copy, since what is in a run folder is all that sampling needs: a folder moves, a name of the hub gets other weights
or cannot be reached, and it is small beside one checkpoint. `dit-shd encode` keeps one beside the latents for the same
reason, so that training needs no network.
"""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from dit_shd.core.errors import UserError
from dit_shd.core.files import atomic_folder, write_text
from dit_shd.core.places import HUB, Asset, HubName, find, is_here
from dit_shd.core.pretrained import COPY, RECORD, model_folder
from dit_shd.core.yaml_files import read_yaml
from dit_shd.data.autoencoder import Autoencoder, Scaling, read_autoencoder
from dit_shd.data.decoder import Decoder
from dit_shd.data.latent_shards import INDEX, LatentSet, read_index

AUTO, PIXELS = "auto", "pixels"
"""Values of `vae=` that are no names."""
COLOURS = (1, 3)
"""Channels that latents have where they may be pixels."""


@dataclass(frozen=True)
class Origin:
    """The autoencoder that some latents were made by, as far as it is known."""

    vae: str | None = None
    """Its name or folder as `dit-shd encode` was told; None: nothing tells."""
    vae_sha256: str | None = None
    encoder_sha256: str | None = None
    """Of the tensors that make latents; None in what older versions wrote."""
    vae_scaling: Scaling | None = None
    """None in what older versions wrote, which knew scaling_factor and shift_factor only."""
    places: tuple[Path, ...] = field(default=(), compare=False)
    """Where copies of it may be."""

    @classmethod
    def of_record(cls, told: Any, places: Sequence[Path] = ()) -> "Origin":
        """From a record's values, or from what latents.json tells about its set.

        Raises:
            ValueError, TypeError, KeyError, AttributeError: they are something else.
        """
        texts = {key: told.get(key) for key in ("vae", "vae_sha256", "encoder_sha256")}
        if any(text is not None and not isinstance(text, str) for text in texts.values()):
            raise ValueError("vae, vae_sha256 or encoder_sha256 is no text")
        scaling = told.get("vae_scaling")
        scaling = None if scaling is None else Scaling.of_record(scaling)
        return cls(**texts, vae_scaling=scaling, places=tuple(places))

    @classmethod
    def of_autoencoder(cls, name: str, found: Autoencoder) -> "Origin":
        return cls(name, found.digest, found.encoder_digest, found.scaling)

    def record(self) -> dict[str, Any]:
        scaling = None if self.vae_scaling is None else self.vae_scaling.record()
        about = {"vae": self.vae, "vae_sha256": self.vae_sha256, "encoder_sha256": self.encoder_sha256}
        return {**about, "vae_scaling": scaling}

    @property
    def words(self) -> str:
        told = f" (sha256 {self.vae_sha256[:12]}...)" if self.vae_sha256 else ""
        return f"'{self.vae}'{told}" if self.vae else "an autoencoder that nothing names"

    def differs(self, found: Autoencoder, exact: bool) -> str | None:
        """Why pictures of these latents by some autoencoder would be wrong; None if they would not.

        Args:
            exact: it must be the very one; else one of the same encoder and scaling (and another decoder) will do.
        """
        same = found.digest == self.vae_sha256
        if self.vae_sha256 and not same and (exact or found.encoder_digest != self.encoder_sha256):
            return f"has other weights (sha256 {found.digest[:12]}...)"
        if self.vae_scaling is not None and self.vae_scaling != found.scaling:
            return "scales its latents otherwise, by its config.json"
        if self.vae_sha256 and self.vae_scaling is None and found.vae.config.get("latents_mean") is not None:
            return (
                "has latents_mean and latents_std, which the version that made the latents ignored; encode them again"
            )
        return None

    def find(self) -> Autoencoder:
        """The autoencoder itself, from the first place that has it.

        Raises:
            UserError: none has.
        """
        reasons = []
        for place in [*(str(place) for place in self.places if place.is_dir()), *self._names()]:
            if not place.startswith("hub:") and not is_here(place, "autoencoder"):
                reasons.append(f"nothing is at '{place}'")
                continue
            try:
                found = read_autoencoder(place)
            except UserError as error:
                reasons.append(str(error).removeprefix("vae: "))
                continue
            wrong = self.differs(found, exact=True)
            if wrong is None:
                return found
            reasons.append(f"'{place}' {wrong}")
        raise UserError(
            f"vae: the latents are those of {self.words}, which is not to be had: {'; '.join(reasons) or 'no place'}; "
            "say where it is: vae=FOLDER or vae=hub:OWNER/NAME, or vae=null to do without"
        )

    def _names(self) -> list[str]:
        """How it may be called; versions that wrote no scaling had names of the hub without `hub:`."""
        bare = self.vae and self.vae_scaling is None and not is_here(self.vae, "autoencoder")
        if bare and HUB.fullmatch(f"hub:{self.vae}"):
            return [f"hub:{self.vae}"]
        return [self.vae] if self.vae else []

    def take(self, source: str) -> Autoencoder:
        """An autoencoder that somebody names for these latents.

        Raises:
            UserError: there is none, or it is one for other latents.
        """
        found = read_autoencoder(source)
        wrong = self.differs(found, exact=False)
        if wrong is not None:
            raise UserError(f"vae: the latents are those of {self.words}, and '{source}' {wrong}; leave vae out")
        return found


@dataclass(frozen=True)
class Kept:
    """What a run is to keep of its autoencoder; `origin` is None where latents are pixels."""

    origin: Origin | None
    autoencoder: Autoencoder | None = None

    def write(self, run: Path) -> None:
        """Into the run folder, where it is not there yet."""
        if self.origin is None:
            return
        if self.autoencoder is not None and self.autoencoder.vae.config.get("_name_or_path") != str(run / COPY):
            keep_copy(self.autoencoder, run / COPY)
        write_record(self.origin, run)


def before_training(wanted: str | None, origin: Origin | None, channels: int, run: Path) -> Kept:
    """What a run on some latents is to keep, found before its first step.

    Args:
        wanted: auto, pixels, a folder or name, or None to train without it.
        origin: of the data, as they tell it; None: they are pixels.

    Raises:
        UserError: the autoencoder is not to be had, is another, is one of other latents, or the run began with another.
    """
    if wanted == PIXELS or (origin is None and wanted in (AUTO, None) and channels in COLOURS):
        _check_colours(channels)
        if origin is not None and origin.vae:
            raise UserError(f"vae: the data's latents are those of {origin.words}, not pixels; leave vae out")
        return Kept(None)
    origin = origin or Origin()
    begun = read_record(run)
    if wanted not in (AUTO, None):
        found, name = origin.take(wanted), wanted
    elif wanted is None or not (origin.vae or (begun and begun.vae)):
        return Kept(origin)
    else:
        name = begun.vae if begun and begun.vae else origin.vae or ""
        found = replace(begun or origin, places=(run / COPY, *origin.places)).find()
        wrong = origin.differs(found, exact=False)
        if wrong is not None:
            raise UserError(f"{run / COPY}: the data's latents are those of {origin.words}, and the run's {wrong}")
    Decoder.of(found, name, channels, torch.device("cpu"))
    return Kept(Origin.of_autoencoder(name, found), found)


def decoder(wanted: str | None, origin: Origin | None, channels: int, device: torch.device) -> Decoder:
    """What turns latents into what is written.

    Args:
        wanted: auto, pixels, a folder or name, or None to keep latents.
        origin: of the latents; None: pixels.

    Raises:
        UserError: nothing tells of which autoencoder they are, or it is not to be had, or another one was named.
    """
    if wanted is None:
        return Decoder(keep=True)
    if wanted == PIXELS or (wanted == AUTO and origin is None):
        _check_colours(channels)
        return Decoder()
    if wanted == AUTO:
        assert origin is not None
        if not origin.vae:
            pixels = "vae=pixels if they are pixels, " if channels in COLOURS else ""
            raise UserError(
                f"vae: the model makes latents of {channels} channels, and nothing tells of which autoencoder; say "
                f"vae=FOLDER or vae=hub:OWNER/NAME to decode them, {pixels}or vae=null to keep them as they are "
                "(float32, no images)"
            )
        return Decoder.of(origin.find(), origin.vae or "vae", channels, device)
    return Decoder.of((origin or Origin()).take(wanted), wanted, channels, device)


def of_source(source: str, channels: int) -> Origin | None:
    """Of the latents that the model in a run, a student's folder or a pipeline makes; None: they are pixels."""

    otherwise = None if channels in COLOURS else Origin()
    path = find(source, "model") if source else Asset("")
    if isinstance(path, Asset):
        return otherwise
    if isinstance(path, HubName):
        return _on_hub(path, otherwise)
    begun = read_record(path)
    if begun is not None:
        return replace(begun, places=(path / COPY, path.parent / COPY))
    folder = model_folder(path) if path.is_dir() else None
    if folder is not None and folder.name == "transformer" and (folder.parent / COPY).is_dir():  # a pipeline
        return Origin(str(folder.parent / COPY))
    begun_before = next((place for place in (path, path.parent) if (place / "config.yaml").is_file()), None)
    return otherwise if begun_before is None or folder is None else _of_old_run(begun_before, otherwise)


def _on_hub(name: HubName, otherwise: Origin | None) -> Origin | None:
    """Of a student that somebody has put there, or of a pipeline, which has its autoencoder beside its transformer."""
    file = name.file(RECORD)
    if file is not None:
        return read_record(file.parent)
    pipeline = name.file("config.json") is None and name.file(f"{COPY}/config.json") is not None
    return Origin(str(name)) if pipeline else otherwise


def _of_old_run(run: Path, otherwise: Origin | None) -> Origin | None:
    """Of a run that wrote no record: what its data tell, if they are latents."""

    data = read_yaml(run / "config.yaml").get("data")
    if not isinstance(data, dict) or data.get("name") != "latents":
        return otherwise
    try:
        return origin_of(read_index(Path(str(data.get("path")))))
    except UserError:  # moved away since
        return Origin()


def following(model: Path, count: int, decodes: bool, vae: str | None = None) -> str:
    """What to do next with a model, in lines that can be pasted.

    Args:
        decodes: sampling finds the autoencoder by itself. vae: else its name, where that is known.
    """
    line = f"next: dit-shd sample {shlex.quote(str(model))} count={count}"
    if decodes or vae:
        return line if decodes else f"{line} vae={shlex.quote(str(vae))}"
    return f"{line} vae=null\n      (keeps latents; their autoencoder, vae=FOLDER or hub:OWNER/NAME, decodes them)"


def read_record(folder: Path) -> Origin | None:
    """What a folder tells of its model's latents; None where it has no record.

    Raises:
        UserError: the record is none.
    """
    file = folder / RECORD
    if not file.is_file():
        return None
    try:
        return Origin.of_record(json.loads(file.read_text(encoding="utf-8")))
    except Exception as error:  # a stranger's file can be wrong in any way
        reason = " ".join(str(error).split())[:100]
        raise UserError(
            f"{file}: not written by dit-shd train ({reason}); say vae=FOLDER or vae=hub:OWNER/NAME"
        ) from error


def write_record(origin: Origin, folder: Path) -> None:
    write_text(folder / RECORD, json.dumps(origin.record(), indent=1) + "\n")


def keep_copy(autoencoder: Autoencoder, folder: Path) -> None:
    """A copy of an autoencoder, whole or not at all."""
    with atomic_folder(folder) as part:
        autoencoder.vae.save_pretrained(part, safe_serialization=True)


def _check_colours(channels: int) -> None:
    if channels not in COLOURS:
        raise UserError(
            f"vae: pixels have 1 or 3 channels, the model's latents have {channels}; vae=FOLDER or hub:OWNER/NAME"
        )


def origin_of(latents: LatentSet) -> Origin | None:
    """The autoencoder that a set names; None where pixels are the latents.

    Raises:
        UserError: what latents.json says of it is nothing that encode writes.
    """
    if latents.about.get("vae") is None and latents.about.get("vae_sha256") is None:
        return None
    try:
        return Origin.of_record(latents.about, [latents.folder / COPY])
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{latents.folder / INDEX}: about: not written by dit-shd encode ({error}); encode again"
        ) from error
