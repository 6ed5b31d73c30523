"""Model families, one file each: mdt.py (MDTv2), dit.py (DiT). A family is a diffusers ModelMixin.

Beside them: what families share, public checkpoint files, diffusers folders (here and on the hub), model cards.
"""

import hashlib
import inspect
import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from diffusers import ModelMixin
from torch import Tensor, nn

from dit_shd.errors import UserError
from dit_shd.models import _card, _public, _velocity
from dit_shd.models._folder import WEIGHTS, families, model_folder, of_hub, read_folder
from dit_shd.models._transformer import LatentTransformer
from dit_shd.models.dit import DiT
from dit_shd.models.mdt import MDTv2
from dit_shd.places import Asset, HubName, find

_log = logging.getLogger("dit_shd")

if TYPE_CHECKING:
    from dit_shd.latent_origin import Origin

__all__ = ["DiT", "MDTv2", "export", "exported_step", "load"]


def load(source: str | Path) -> ModelMixin:
    """A model from a run folder, a diffusers folder, a checkpoint file, `asset:NAME` (ships with us), or the Hugging
    Face hub's `hub:OWNER/NAME[@REVISION]`; of a pipeline the transformer is taken.

    Raises:
        UserError: nothing there, something else, weights that are not finite, or a model that does not predict noise.
    """
    model = _read(source)
    bad = next((name for name, p in model.named_parameters() if not bool(torch.isfinite(p).all())), None)
    if bad is not None:
        raise UserError(f"{source}: its weights are not finite (NaN or infinity), first in {bad}")
    reason = _velocity.of_model(model)
    if reason is not None:
        raise UserError(f"{source}: refused, because {_velocity.words(reason)}")
    return model


def load_conditional(source: str | Path) -> ModelMixin:
    """A model as `load` gives, that denoises latents by class: what is trained, distilled and sampled from.

    Raises:
        UserError: as `load`, or it is another kind of model.
    """
    model = load(source)
    reason = why_not_conditional(model)
    if reason is not None:
        raise UserError(f"{source}: {reason}")
    return model


def why_not_conditional(model: nn.Module) -> str | None:
    """What keeps a model from denoising square latents by class; None for one that can."""
    known = inspect.signature(model.forward).parameters
    told: Any = getattr(model, "config", {})
    wrapped = any(p.kind is p.VAR_KEYWORD for p in known.values())  # compiled, or in a module of somebody's own
    sizes = (told.get("num_classes", told.get("num_embeds_ada_norm")), told.get("in_channels"), told.get("sample_size"))
    by_class = wrapped or ("class_labels" in known and "encoder_hidden_states" not in known)
    if by_class and all(isinstance(size, int) for size in sizes):
        return None
    return (
        f"holds {type(model).__name__}, whose forward takes {', '.join([*known][:4]) or 'nothing'}; training and "
        "sampling want a transformer of square latents by class: MDTv2, DiT or diffusers' DiTTransformer2DModel; the "
        "attention of others can be distilled by dit_shd.capture in a script of your own"
    )


def _read(source: str | Path) -> ModelMixin:
    place = find(source, "model")
    if isinstance(place, Asset):
        return read_folder(asset(place.name))
    if isinstance(place, HubName):
        return read_folder(of_hub(place))
    if place.is_file():
        named = WEIGHTS.fullmatch(place.name) if (place.parent / "config.json").is_file() else None
        return read_file(place) if named is None else read_folder(place.parent, named["variant"])
    folder = model_folder(place)
    if folder is None:
        parts = ", ".join(sorted(file.parent.name for file in place.glob("*/config.json")))
        found = f"one with {parts} in it (a pipeline without a transformer?)" if parts else "none with a config.json"
        raise UserError(f"{place}: wanted a folder of a model, a run, or a pipeline with a transformer, found {found}")
    return read_folder(folder)


def read_file(path: Path, weights: _public.Weights | None = None, heads: int | None = None) -> LatentTransformer:
    """A model from a checkpoint file of a public code.

    Args:
        weights: as in read_tensors. heads: as in LatentTransformer.from_public.
    """
    state = _public.read_tensors(path, weights)
    try:
        model = of_public(state, heads)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    classes = model.config.num_classes  # type: ignore[attr-defined]
    if classes + 1 in _public.USUAL_CLASSES:
        _log.warning(
            "%s: its class embedding has %d rows, read as %d classes and one row for no class; if it knows %d classes "
            "and was trained without dropping labels, guidance with it is wrong: guidance=1",
            *(path, classes + 1, classes, classes + 1),
        )
    return model


def of_public(state: Mapping[str, Tensor], heads: int | None = None) -> LatentTransformer:
    """A model from a public state dict of whichever family of ours it is.

    Args:
        heads: as in LatentTransformer.from_public.

    Raises:
        UserError: none of them, or something in it does not fit.
    """
    known = {name: cls for name, cls in families().items() if issubclass(cls, LatentTransformer)}
    reason = _velocity.of_state(_public.clean(state))
    if reason is not None:
        raise UserError(f"refused, because {_velocity.words(reason)}")
    for cls in known.values():
        if cls.is_public(_public.clean(state)):
            return cls.from_public(state, heads)
    first = ", ".join(sorted(state)[:2]) or "none"
    raise UserError(f"not a state dict of {' or '.join(known)}: none has tensors of these names ({first}, ...)")


def asset(name: str) -> Path:
    """The folder of `asset:NAME`."""
    assets = Path(str(resources.files("dit_shd") / "assets"))
    known = {folder.parent.name: folder.parent for folder in assets.glob("*/config.json")}
    if name not in known:
        raise UserError(f"asset:{name}: no such model among dit_shd's assets; there is: {', '.join(known)}")
    return known[name]


def of_run(config: Any) -> Any:
    """A SampleConfig with what the run folder it names knows: the steps of the noise schedule."""
    from dit_shd.config import read_yaml

    file = Path(config.run) / "config.yaml"
    steps = read_yaml(file).get("diffusion_steps") if file.is_file() else None
    return replace(config, diffusion_steps=steps) if isinstance(steps, int) else config


def digest(model: nn.Module, parts: tuple[str, ...] = ("",)) -> str:
    """sha256 of a model's tensors, by name; of those whose names begin with one of `parts`."""
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        if name.startswith(parts):
            total.update(name.encode())
            total.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def provenance(source: str | Path) -> _card.Provenance:
    """Where the weights that `load(source)` reads come from, as far as their card or file tells."""
    try:
        place = find(source, "model")
    except UserError:  # it has been moved away since it was loaded
        return _card.Provenance("unknown")
    if isinstance(place, Asset):
        return _card.of_folder(str(source), asset(place.name))
    if isinstance(place, HubName):
        return _card.of_hub(place)
    if place.is_file():
        return _card.of_file(place)
    folder = model_folder(place)
    return _card.Provenance("unknown") if folder is None else _card.of_folder(place.resolve().name, folder)


def export(model: Any, folder: Path, config: Any, step: int, rate: float) -> None:
    """Write a trained model with a card, replacing the last: a reader sees one of the two, whole.

    Args:
        rate: of the average that its weights are.
    """
    from dit_shd.latent_origin import read_record

    origin = _card.inherited([] if config.teacher is None else [provenance(config.teacher)])
    latents = read_record(Path(config.run))
    write(model, folder, _card.trained(model, config, step, origin, rate, latents), latents)


def write(model: Any, folder: Path, card: str, latents: "Origin | None" = None) -> None:
    """Write a model in diffusers format with a model card, replacing the last.

    Args:
        latents: of which autoencoder they are.
    """
    from dit_shd.files import replacing
    from dit_shd.latent_origin import write_record

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
