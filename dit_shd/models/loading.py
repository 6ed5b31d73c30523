"""load(): a model from a run folder, a diffusers folder, a checkpoint file, the hub or our assets."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from torch import Tensor

from dit_shd.core.errors import UserError
from dit_shd.models import public_checkpoints
from dit_shd.models.families import FAMILIES
from dit_shd.models.hub import HUB_NAME, asset, hub_file, model_folder
from dit_shd.models.transformer import LatentTransformer


def load(source: str | Path) -> ModelMixin:
    """A model from a run folder, a diffusers folder, a checkpoint file, the hub, or `asset:NAME` (ships with us).

    A name OWNER/NAME of the Hugging Face hub counts where there is no such path; a pipeline's transformer is taken.

    Raises:
        UserError: nothing there, something else, or weights that are not finite.
    """
    model = _read(str(source))
    bad = next((name for name, p in model.named_parameters() if not bool(torch.isfinite(p).all())), None)
    if bad is not None:
        raise UserError(f"{source}: its weights are not finite (NaN or infinity), first in {bad}")
    return model


def _read(source: str) -> ModelMixin:
    if source.startswith("asset:"):
        return read_folder(asset(source))
    path = Path(source)
    if path.is_file():
        return read_file(path)
    folder = model_folder(path)
    if folder is not None:
        return read_folder(folder)
    if not path.exists() and HUB_NAME.fullmatch(source):
        return read_hub(source)
    raise UserError(
        f"{path}: wanted a run folder with a student, a diffusers folder, a checkpoint file, or the hub's OWNER/NAME"
    )


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


def read_folder(folder: Path) -> ModelMixin:
    """The model of a diffusers folder.

    Raises:
        UserError: it cannot be read, or weights and config.json do not fit together.
    """
    return _read_diffusers(folder / "config.json", str(folder), str(folder))


def read_hub(name: str) -> ModelMixin:
    """The model OWNER/NAME of the Hugging Face hub, or what of it is in the local cache.

    Raises:
        UserError: no such model, or no network.
    """
    for subfolder in ("", "transformer"):
        file = hub_file(name, f"{subfolder}/config.json".lstrip("/"))
        if file is not None:
            return _read_diffusers(file, name, name, subfolder=subfolder or None)
    raise UserError(
        f"{name}: no such file or folder here; on the hub there is no such model (or none with a config.json, or it "
        "needs a login), or the hub cannot be reached and it is not in the local cache"
    )


def families() -> dict[str, type]:
    """Every family of ours, by the name of its class."""
    return {cls.__name__: cls for cls in (FAMILIES.find(name) for name in FAMILIES.names())}


def _read_diffusers(config: Path, source: str, where: str, **options: Any) -> ModelMixin:
    try:
        name = json.loads(config.read_text(encoding="utf-8"))["_class_name"]
        if not isinstance(name, str):
            raise ValueError("_class_name is no text")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{where}/config.json: not the config of a diffusers model") from error
    cls: Any = families().get(name) or _diffusers_class(name)
    if cls is None:
        raise UserError(f"{where}: model class '{name}' is neither ours ({', '.join(families())}) nor diffusers'")
    try:  # weights that are no safetensors are read with weights_only by diffusers
        model, told = cls.from_pretrained(source, output_loading_info=True, **options)
    except Exception as error:  # a stranger's folder can be wrong in any way
        raise UserError(f"{where}: cannot be read as {name}: {' '.join(str(error).split())[:200]}") from error
    for wrong, words in (("missing_keys", "missing"), ("unexpected_keys", "unknown"), ("mismatched_keys", "misshapen")):
        if told[wrong]:
            count, first = len(told[wrong]), sorted(told[wrong])[0]
            raise UserError(f"{where}: the weights do not fit config.json: {count} {words}, first {first}")
    return model.float()


def _diffusers_class(name: str) -> Any:
    import diffusers

    cls = getattr(diffusers, name, None)
    return cls if isinstance(cls, type) and issubclass(cls, ModelMixin) and cls is not ModelMixin else None
