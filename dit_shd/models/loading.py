"""load(): a model from a run folder, a diffusers folder, a checkpoint file, the hub or our assets."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from torch import Tensor

from dit_shd.core.errors import UserError
from dit_shd.core.places import WANTED, Asset, HubName, find
from dit_shd.core.pretrained import asset, class_name, model_folder, of_hub, read_weights
from dit_shd.models import public_checkpoints
from dit_shd.models.families import FAMILIES
from dit_shd.models.transformer import LatentTransformer


def load(source: str | Path) -> ModelMixin:
    """A model from a run folder, a diffusers folder, a checkpoint file, `asset:NAME` (ships with us), or the Hugging
    Face hub's `hub:OWNER/NAME[@REVISION]`; of a pipeline the transformer is taken.

    Raises:
        UserError: nothing there, something else, or weights that are not finite.
    """
    model = _read(source)
    bad = next((name for name, p in model.named_parameters() if not bool(torch.isfinite(p).all())), None)
    if bad is not None:
        raise UserError(f"{source}: its weights are not finite (NaN or infinity), first in {bad}")
    return model


def _read(source: str | Path) -> ModelMixin:
    place = find(source, "model")
    if isinstance(place, Asset):
        return read_folder(asset(place.name))
    if isinstance(place, HubName):
        return read_folder(of_hub(place))
    if place.is_file():
        return read_file(place)
    folder = model_folder(place)
    if folder is None:
        raise UserError(f"{place}: wanted {WANTED['model']}, found a folder without any config.json of a model")
    return read_folder(folder)


def read_file(
    path: Path, weights: public_checkpoints.Weights | None = None, heads: int | None = None
) -> LatentTransformer:
    """A model from a checkpoint file of a public code.

    Args:
        weights: as in read_tensors. heads: as in LatentTransformer.from_public.
    """
    state = public_checkpoints.read_tensors(path, weights)
    try:
        return of_public(state, heads)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def of_public(state: Mapping[str, Tensor], heads: int | None = None) -> LatentTransformer:
    """A model from a public state dict of whichever family of ours it is.

    Args:
        heads: as in LatentTransformer.from_public.

    Raises:
        UserError: none of them, or something in it does not fit.
    """
    known = {name: cls for name, cls in families().items() if issubclass(cls, LatentTransformer)}
    for cls in known.values():
        if cls.is_public(public_checkpoints.clean(state)):
            return cls.from_public(state, heads)
    first = ", ".join(sorted(state)[:2]) or "none"
    raise UserError(f"not a state dict of {' or '.join(known)}: none has tensors of these names ({first}, ...)")


def read_folder(folder: Path, variant: str | None = None) -> ModelMixin:
    """The model of a diffusers folder.

    Args:
        variant: as in read_weights.

    Raises:
        UserError: it cannot be read, or weights and config.json do not fit together.
    """
    name = class_name(folder)
    cls: Any = families().get(name) or _diffusers_class(name)
    if cls is None:
        raise UserError(f"{folder}: model class '{name}' is neither ours ({', '.join(families())}) nor diffusers'")
    return read_weights(cls, folder, variant).float()


def families() -> dict[str, type]:
    """Every family of ours, by the name of its class."""
    return {cls.__name__: cls for cls in (FAMILIES.find(name) for name in FAMILIES.names())}


def _diffusers_class(name: str) -> Any:
    import diffusers

    cls = getattr(diffusers, name, None)
    return cls if isinstance(cls, type) and issubclass(cls, ModelMixin) and cls is not ModelMixin else None
