"""`dit-shd convert`: public checkpoints and diffusers folders into folders of dit_shd, and back."""

import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from dit_shd.core import hashing
from dit_shd.core.config import checked, option
from dit_shd.core.errors import UserError
from dit_shd.core.files import atomic_file
from dit_shd.core.places import MODEL, HubName, Place, find
from dit_shd.core.pretrained import RECORD, TRAINING, folder_of_weights, read_config
from dit_shd.data.latent_origin import Origin
from dit_shd.data.model_origin import following, of_source
from dit_shd.models import cards, export, loading, provenance, public_checkpoints
from dit_shd.models.diffusers_dit import NOTE, public_state
from dit_shd.models.families.dit import USUAL_HEADS, DiT
from dit_shd.models.prediction import NOISE, PREDICTION, prediction_of
from dit_shd.models.shape import shape_of
from dit_shd.models.transformer import LatentTransformer

SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt")
WRITTEN_WEIGHTS = "diffusion_pytorch_model*.safetensors"
WRITTEN = ("config.json", "README.md", RECORD, TRAINING, WRITTEN_WEIGHTS, "*.safetensors.index.json")
"""Files of a model folder, which may be replaced."""


@dataclass(frozen=True)
class ConvertConfig:
    """What to convert, and into which format."""

    source: Place = option("", f"the FILE: {MODEL}")
    out: Path = option(Path(), "the OUT: a folder, or a file for format=public")
    weights: public_checkpoints.Weights | None = option(
        None, "of a training checkpoint: ema or model; empty: ema where there is one"
    )
    heads: int | None = option(
        None, "heads of a DiT; empty: as the file's metadata says, or as public ones of its width"
    )
    format: Literal["diffusers", "public"] | None = option(
        None, "a diffusers folder, or a state dict as the public code has it; empty: by whether OUT is named .pt etc."
    )
    prediction: Literal["noise", "velocity_sit", "velocity_repa", "velocity_sd3"] | None = option(
        None,
        "what the model of a checkpoint file predicts, as its code says: velocity_sit for SiT, velocity_repa for REPA; "
        "empty: as its metadata says, else noise",
    )
    license: str | None = option(None, "licence of the weights, as the hub names it (apache-2.0); empty: as found")
    force: bool = option(False, "replace OUT if it is a model folder or a file")

    def check(self) -> None:
        """Check that OUT can be written without losing anything.

        Raises:
            UserError: OUT holds other files, or exists without force=true.
        """
        if self.format == "public" and self.out.suffix not in SUFFIXES:
            raise UserError(f"OUT: wanted a file named {', '.join(SUFFIXES)} for format=public, found {self.out}")
        if self.out.is_dir():
            kept = {file for pattern in WRITTEN for file in self.out.glob(pattern)}
            others = [file.name for file in sorted(self.out.iterdir()) if file not in kept]
            if self.public or others:
                what = f"holds {others[0]}" if others else "is a folder"
                raise UserError(f"{self.out}: {what}, so it is not replaced; choose another OUT")
            if kept and not any(self.out.glob(WRITTEN_WEIGHTS)) and "_class_name" not in read_config(self.out):
                raise UserError(
                    f"{self.out}: holds neither weights nor a config.json of a model, so it is not replaced; choose "
                    "another OUT"
                )
        elif self.out.exists() and not self.public:
            raise UserError(f"{self.out}: is a file; choose another OUT, or format=public to replace it")
        if self.out.exists() and not self.force and not (self.out.is_dir() and not any(self.out.iterdir())):
            raise UserError(f"{self.out}: is there already; choose another OUT, or force=true replaces it")

    @property
    def public(self) -> bool:
        """Whether to write a state dict of the public code."""
        return self.format == "public" or (self.format is None and self.out.suffix in SUFFIXES)


@dataclass(frozen=True)
class Converted:
    """What `convert` wrote."""

    out: Path
    lines: list[str]
    """For the user: the model, its licence, its folder, commands that may follow."""


def convert(
    config: ConvertConfig, words_of_run: Callable[[str, nn.Module], Sequence[str]] = lambda source, model: ()
) -> Converted:
    """Read a checkpoint of any supported kind and write it in another.

    Args:
        config: The config of the command.
        words_of_run: What sampling must be told of a model that is in no folder (diffusion.sampled_run), as its words.

    Raises:
        UserError: Nothing to read, another model, or OUT is in use; nothing has been written then.
    """
    config = checked(config, "convert")
    config.check()
    model, note = _read(config)
    loading.check_finite(str(config.source), model)
    origin, reason = _origin(config, model)
    latents = of_source(config.source, shape_of(model).channels)
    words = words_of_run(config.source, model) if config.public else ()
    if config.public:
        if config.out.suffix != ".safetensors":
            note += _unsaid(model, config.out.suffix)
        _write_file(model, config.out, origin)
        if words:
            note.append(f"what its run says of sampling is not in the file, so say it then: {' '.join(words)}")
        done = str(config.out)
    else:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        card = cards.converted(model, _name(config.source), hashing.sha256_of_tensors(model), origin, latents)
        training = export.for_sampling(export.run_values(config.source))
        export.write(model, config.out, card, latents, training or None)
        done = f"{config.out} (config.json, weights, README.md)"
    lines = [f"{config.source}: {describe(model)}", *note, f"licence: {origin.license or 'none inherited'}{reason}"]
    return Converted(config.out, [*lines, f"done: {done}", *_following(config, latents, words)])


def _following(config: ConvertConfig, latents: Origin | None, words: Sequence[str]) -> list[str]:
    """Commands that may follow, one a line."""
    decodes = latents is None or (bool(latents.vae) and not config.public)
    lines = following(config.out, 16, decodes, None if latents is None else latents.vae, words).splitlines()
    return lines if config.public else [*lines, f"or:   dit-shd train CONFIG teacher={shlex.quote(str(config.out))}"]


def describe(model: LatentTransformer) -> str:
    """A model's sizes in a line."""
    shape = shape_of(model)
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    return (
        f"{type(model).__name__}, {millions:.2f} M parameters: {shape.layers} blocks of {shape.heads} heads, "
        f"width {shape.width}, {shape.tokens} tokens of patch {shape.patch} (latents "
        f"{'x'.join(map(str, shape.latents))}), {shape.classes} classes, "
        f"variance {'learned' if model.config['learn_sigma'] else 'fixed'}"
    )


def _read(config: ConvertConfig) -> tuple[LatentTransformer, list[str]]:
    """The model, and notes for the user on how it was read."""
    from diffusers import DiTTransformer2DModel

    path = find(config.source, "model")
    if isinstance(path, Path) and path.is_file() and folder_of_weights(path) is None:
        return loading.read_file(path, config.weights, config.heads, config.prediction), []
    if config.weights is not None:
        raise UserError("weights: only of checkpoint files, which may hold several; leave it out")
    if config.prediction is not None:
        raise UserError("prediction: only of checkpoint files, a folder's config.json says it; leave it out")
    model = loading.load(config.source)
    shape = shape_of(model)
    if config.heads is not None and shape.names("num_attention_heads") and config.heads != shape.heads:
        raise UserError(f"heads: its config.json says {shape.heads}, found heads={config.heads}")
    if isinstance(model, LatentTransformer):
        return model, []
    if isinstance(model, DiTTransformer2DModel):
        return DiT.from_public(public_state(model), shape.heads), [NOTE]
    raise UserError(
        f"{config.source}: holds {type(model).__name__}; wanted MDTv2, DiT or diffusers' DiTTransformer2DModel"
    )


def _name(source: str) -> str:
    place = find(source, "model")
    return str(place) if isinstance(place, HubName) else Path(source).name


def _origin(config: ConvertConfig, model: LatentTransformer) -> tuple[provenance.Provenance, str]:
    """The provenance of the weights, and the reason for it, for the user."""
    origin = provenance.inherited([provenance.provenance(config.source)])
    if config.license is not None:
        return replace(origin, license=config.license.strip().lower()), ", as you say"
    xl = {**DiT.SIZES["XL/2"], "num_classes": 1000, "learn_sigma": True}
    side = 8 * shape_of(model).side
    guess = f"DiT-XL-2-{side}x{side}"
    if (
        origin.license == "unknown"
        and type(model) is DiT
        and prediction_of(model) == NOISE
        and xl.items() <= dict(model.config).items()
        and guess in provenance.PUBLIC
    ):
        return provenance.PUBLIC[guess], f", taken for the public {guess} by its sizes; if it is another: license=..."
    if origin.license == "unknown":
        return origin, ": nothing there says whose the weights are; if you know, license=..."
    return origin, " (what learns from it inherits that)" if origin.noncommercial else ""


def _unsaid(model: LatentTransformer, suffix: str) -> list[str]:
    """Notes on what a file without metadata does not say of its model.

    Raises:
        UserError: It would be read as another model.
    """
    shape, prediction, notes = shape_of(model), prediction_of(model), list[str]()
    usual = USUAL_HEADS.get(shape.width) if isinstance(model, DiT) else shape.heads  # MDTv2's tensors have the heads
    unsaid = f"its model predicts {prediction}" if prediction != NOISE else ""
    if usual not in (None, shape.heads):
        unsaid = unsaid or f"its model has {shape.heads} heads, where a DiT of width {shape.width} has {usual}"
    if unsaid:
        raise UserError(f"OUT: a {suffix} file does not say that {unsaid}; wanted one named .safetensors, or a folder")
    if usual is None:
        notes.append(f"its heads are not in a {suffix} file, so whoever reads it must say heads={shape.heads}")
    if shape.class_names is not None:
        notes.append(f"its classes' names are not in a {suffix} file; a .safetensors file or a folder has them")
    return notes


def _facts(model: LatentTransformer) -> dict[str, str]:
    """What tensors do not say of a model, for the metadata of a file; public_checkpoints.recorded reads it."""
    shape, prediction = shape_of(model), prediction_of(model)
    facts = {} if prediction == NOISE else {PREDICTION: prediction}  # files of others do not say noise, either
    names = {} if shape.class_names is None else {public_checkpoints.CLASS_NAMES: json.dumps(list(shape.class_names))}
    return {**facts, public_checkpoints.HEADS_KEY: str(shape.heads), **names}


def _write_file(model: LatentTransformer, out: Path, origin: provenance.Provenance) -> None:
    from safetensors.torch import save_file

    out.parent.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach().contiguous() for k, v in model.to_public().items()}
    with atomic_file(out, "nothing has changed") as stream:
        if out.suffix == ".safetensors":
            tensors = {
                k: v if v.is_floating_point() else v.clone() for k, v in state.items()
            }  # index buffers are shared
            save_file(tensors, stream.name, metadata={**cards.metadata(origin), **_facts(model)})
        else:
            torch.save(state, stream)
