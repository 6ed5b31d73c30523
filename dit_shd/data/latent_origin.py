"""The autoencoder of a run's latents: training keeps a copy, and sampling decodes with it.

RUN/autoencoder.json   its name, sha256 and scaling, or that latents are pixels; also beside exported students
RUN/vae/               the autoencoder in diffusers format

The copy lets a run folder suffice for sampling when the original is moved, changed on the hub or out of reach; it is
small compared with one checkpoint. `dit-shd encode` keeps a copy beside the latents for the same reason, so that
training requires no network.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from dit_shd.core.errors import UserError, error_line
from dit_shd.core.files import atomic_folder, write_text
from dit_shd.core.places import HUB, PIXELS, is_here
from dit_shd.core.pretrained import COPY, RECORD
from dit_shd.data.autoencoder import Autoencoder, Scaling, read_autoencoder
from dit_shd.data.decoder import Decoder
from dit_shd.data.latent_shards import INDEX, LatentSet

AUTO = "auto"
"""A value of `vae=` that is no name, as PIXELS is."""
COLOURS = (1, 3)
"""Numbers of channels of latents that may be pixels."""


@dataclass(frozen=True)
class Origin:
    """The autoencoder that latents were encoded by, as far as it is known."""

    vae: str | None = None
    """Its name or folder as given to `dit-shd encode`, or PIXELS without a hash; None if it is unknown."""
    vae_sha256: str | None = None
    encoder_sha256: str | None = None
    """Of the encoder's tensors; None in files of older versions."""
    vae_scaling: Scaling | None = None
    """None in files of older versions, which used only scaling_factor and shift_factor."""
    places: tuple[Path, ...] = field(default=(), compare=False)
    """Possible folders of copies."""

    @classmethod
    def of_record(cls, record: Mapping[str, Any], places: Sequence[Path] = ()) -> "Origin":
        """The origin in the content of a record, or of latents.json.

        Args:
            record: Values of autoencoder.json, or of `about` in latents.json.
            places: Possible folders of copies.

        Raises:
            ValueError, TypeError, KeyError, AttributeError: The content is no record.
        """
        texts = {key: record.get(key) for key in ("vae", "vae_sha256", "encoder_sha256")}
        if any(text is not None and not isinstance(text, str) for text in texts.values()):
            raise ValueError("vae, vae_sha256 or encoder_sha256 is no text")
        scaling = record.get("vae_scaling")
        scaling = None if scaling is None else Scaling.of_record(scaling)
        return cls(**texts, vae_scaling=scaling, places=tuple(places))

    @classmethod
    def of_autoencoder(cls, name: str, autoencoder: Autoencoder) -> "Origin":
        """The origin of latents of an autoencoder called `name`."""
        return cls(name, autoencoder.digest, autoencoder.encoder_digest, autoencoder.scaling)

    def record(self) -> dict[str, Any]:
        """The origin as JSON values."""
        scaling = None if self.vae_scaling is None else self.vae_scaling.record()
        texts = {"vae": self.vae, "vae_sha256": self.vae_sha256, "encoder_sha256": self.encoder_sha256}
        return {**texts, "vae_scaling": scaling}

    @property
    def pixels(self) -> bool:
        """Whether the latents are pixels, without an autoencoder."""
        return self.vae == PIXELS and self.vae_sha256 is None

    @property
    def words(self) -> str:
        """The autoencoder, for messages."""
        digest = f" (sha256 {self.vae_sha256[:12]}...)" if self.vae_sha256 else ""
        return f"'{self.vae}'{digest}" if self.vae else "an unknown autoencoder"

    def differs(self, autoencoder: Autoencoder, exact: bool) -> str | None:
        """Why images of these latents by an autoencoder would be wrong; None if they would be right.

        Args:
            autoencoder: The autoencoder.
            exact: Whether it must be the same; else the same encoder and scaling (with another decoder) suffice.
        """
        same = autoencoder.digest == self.vae_sha256
        if self.vae_sha256 and not same and (exact or autoencoder.encoder_digest != self.encoder_sha256):
            return f"has other weights (sha256 {autoencoder.digest[:12]}...)"
        if self.vae_scaling is not None and self.vae_scaling != autoencoder.scaling:
            return "scales its latents otherwise, by its config.json"
        if self.vae_sha256 and self.vae_scaling is None and autoencoder.vae.config.get("latents_mean") is not None:
            return (
                "has latents_mean and latents_std, which the version that made the latents ignored; encode them again"
            )
        return None

    def find(self) -> Autoencoder:
        """Read the autoencoder from the first place that has it.

        Raises:
            UserError: No place has it.
        """
        reasons = []
        for place in [*(str(place) for place in self.places if place.is_dir()), *self._names()]:
            if not place.startswith("hub:") and not is_here(place, "autoencoder"):
                reasons.append(f"nothing is at '{place}'")
                continue
            try:
                autoencoder = read_autoencoder(place)
            except UserError as error:
                reasons.append(str(error).removeprefix("vae: "))
                continue
            difference = self.differs(autoencoder, exact=True)
            if difference is None:
                return autoencoder
            reasons.append(f"'{place}' {difference}")
        raise UserError(
            f"vae: the latents are those of {self.words}, which cannot be loaded: {'; '.join(reasons) or 'no place'}; "
            "say where it is: vae=FOLDER or vae=hub:OWNER/NAME, or vae=null to do without"
        )

    def _names(self) -> list[str]:
        """Its possible names; versions without a recorded scaling had hub names without `hub:`."""
        bare = self.vae and self.vae_scaling is None and not is_here(self.vae, "autoencoder")
        if bare and HUB.fullmatch(f"hub:{self.vae}"):
            return [f"hub:{self.vae}"]
        return [self.vae] if self.vae else []

    def take(self, source: str) -> Autoencoder:
        """Read an autoencoder that the user names for these latents.

        Raises:
            UserError: There is none, or it is one of other latents.
        """
        autoencoder = read_autoencoder(source)
        difference = self.differs(autoencoder, exact=False)
        if difference is not None:
            raise UserError(f"vae: the latents are those of {self.words}, and '{source}' {difference}; leave vae out")
        return autoencoder


@dataclass(frozen=True)
class Kept:
    """The autoencoder that a run keeps."""

    origin: Origin | None
    """None if latents are pixels, or there are none."""
    autoencoder: Autoencoder | None = None
    """None if it is unknown."""
    pixels: bool = False
    """Whether latents are pixels."""

    def write(self, run: Path) -> None:
        """Write it into the run folder, unless it is there already; of pixels, that they are."""
        if self.pixels:
            write_record(Origin(PIXELS), run)
        if self.origin is None:
            return
        if self.autoencoder is not None and self.autoencoder.vae.config.get("_name_or_path") != str(run / COPY):
            keep_copy(self.autoencoder, run / COPY)
        write_record(self.origin, run)


def before_training(setting: str | None, origin: Origin | None, channels: int, run: Path) -> Kept:
    """The autoencoder that a run on latents keeps, resolved before its first step.

    Args:
        setting: `auto`, `pixels`, a folder or name, or None to train without an autoencoder.
        origin: Origin of the data; None if they are pixels.
        channels: Number of channels of the latents.
        run: The run folder.

    Raises:
        UserError: The autoencoder cannot be loaded, has changed, is of other latents, or the run began with another.
    """
    recorded = read_record(run)
    if _are_pixels(setting, origin, channels, recorded):
        _check_colours(channels)
        if origin is not None and origin.vae:
            raise UserError(f"vae: the data's latents are those of {origin.words}, not pixels; leave vae out")
        if setting != PIXELS and recorded is not None and recorded.vae and not recorded.pixels:
            raise UserError(f"{run}: the data are pixels, and the run's latents are those of {recorded.words}")
        return Kept(None, pixels=True)
    origin = origin or Origin()
    if recorded is not None and recorded.pixels:
        if origin.vae:
            raise UserError(f"{run}: the data's latents are those of {origin.words}, and the run's are pixels")
        recorded = None
    if setting not in (AUTO, None):
        autoencoder, name = origin.take(setting), setting
    elif setting is None or not (origin.vae or (recorded and recorded.vae)):
        return Kept(origin)
    else:
        name = recorded.vae if recorded and recorded.vae else origin.vae or ""
        autoencoder = replace(recorded or origin, places=(run / COPY, *origin.places)).find()
        difference = origin.differs(autoencoder, exact=False)
        if difference is not None:
            raise UserError(f"{run / COPY}: the data's latents are those of {origin.words}, and the run's {difference}")
    Decoder.of(autoencoder, name, channels, torch.device("cpu"))
    return Kept(Origin.of_autoencoder(name, autoencoder), autoencoder)


def _are_pixels(setting: str | None, origin: Origin | None, channels: int, recorded: Origin | None) -> bool:
    """Whether a run's latents are pixels: as it is told, as the data tell, or as it began where these tell nothing."""
    if setting not in (AUTO, None):
        return setting == PIXELS
    if origin is None:
        return channels in COLOURS
    return setting == AUTO and not origin.vae and recorded is not None and recorded.pixels


def decoder(setting: str | None, origin: Origin | None, channels: int, device: torch.device) -> Decoder:
    """The decoder of a model's latents.

    Args:
        setting: `auto`, `pixels`, a folder or name, or None to keep latents.
        origin: Origin of the latents; None if they are pixels.
        channels: Number of channels of the latents.
        device: Where it decodes.

    Raises:
        UserError: The autoencoder is unknown, cannot be loaded, or is another than the one that was named.
    """
    if setting is None:
        return Decoder(keep=True)
    if setting == PIXELS or (setting == AUTO and origin is None):
        _check_colours(channels)
        return Decoder()
    if setting == AUTO:
        assert origin is not None
        if not origin.vae:
            pixels = "vae=pixels if they are pixels, " if channels in COLOURS else ""
            raise UserError(
                f"vae: the model makes latents of {channels} channels of an unknown autoencoder; say "
                f"vae=FOLDER or vae=hub:OWNER/NAME to decode them, {pixels}or vae=null to keep latents "
                "(float32, no images)"
            )
        return Decoder.of(origin.find(), origin.vae or "vae", channels, device)
    return Decoder.of((origin or Origin()).take(setting), setting, channels, device)


def read_record(folder: Path) -> Origin | None:
    """The origin of the latents of a folder's model; None if the folder has no record.

    Raises:
        UserError: The file is not a record.
    """
    file = folder / RECORD
    if not file.is_file():
        return None
    try:
        return Origin.of_record(json.loads(file.read_text(encoding="utf-8")))
    except Exception as error:  # an untrusted file can be wrong in any way
        raise UserError(
            f"{file}: not written by dit-shd train ({error_line(error, 100)}); say vae=FOLDER or vae=hub:OWNER/NAME"
        ) from error


def write_record(origin: Origin, folder: Path) -> None:
    """Write the record of a model's latents into its folder."""
    write_text(folder / RECORD, json.dumps(origin.record(), indent=1) + "\n")


def keep_copy(autoencoder: Autoencoder, folder: Path) -> None:
    """Write a copy of an autoencoder in one step."""
    with atomic_folder(folder) as part:
        autoencoder.vae.save_pretrained(part, safe_serialization=True)


def _check_colours(channels: int) -> None:
    if channels not in COLOURS:
        raise UserError(
            f"vae: pixels have 1 or 3 channels, the model's latents have {channels}; vae=FOLDER or hub:OWNER/NAME"
        )


def origin_of(latents: LatentSet) -> Origin | None:
    """The autoencoder of a set of latents; None if pixels are the latents.

    Raises:
        UserError: The entry in latents.json was not written by encode.
    """
    if latents.about.get("vae") is None and latents.about.get("vae_sha256") is None:
        return None
    try:
        return Origin.of_record(latents.about, [latents.folder / COPY])
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{latents.folder / INDEX}: about: not written by dit-shd encode ({error}); encode again"
        ) from error
