"""Diffusers folders, here or on the hub: read by the class that config.json names, ours or diffusers'."""

import json
import re
from pathlib import Path
from typing import Any

from diffusers import ModelMixin

from dit_shd import registry
from dit_shd.errors import UserError

HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
"""OWNER/NAME"""
PLACES = ("student", ".", "transformer")
"""Where in a folder the model may be: of a run, of a model, of a pipeline."""


def model_folder(path: Path) -> Path | None:
    """The diffusers folder in a run, a model's or a pipeline's folder; None where there is none."""
    return next((path / place for place in PLACES if (path / place / "config.json").is_file()), None)


def read_folder(folder: Path) -> ModelMixin:
    """The model of a diffusers folder.

    Raises:
        UserError: it cannot be read, or weights and config.json do not fit together.
    """
    return _read(folder / "config.json", str(folder), str(folder))


def read_hub(name: str) -> ModelMixin:
    """The model OWNER/NAME of the Hugging Face hub, or what of it is in the local cache.

    Raises:
        UserError: no such model, or no network.
    """
    for subfolder in ("", "transformer"):
        file = hub_file(name, f"{subfolder}/config.json".lstrip("/"))
        if file is not None:
            return _read(file, name, name, subfolder=subfolder or None)
    raise UserError(
        f"{name}: no such file or folder here; on the hub there is no such model (or none with a config.json, or it "
        "needs a login), or the hub cannot be reached and it is not in the local cache"
    )


def hub_file(name: str, file: str) -> Path | None:
    """One file of a model of the hub, in the local cache; None if it cannot be had."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, file))
    except Exception:  # no such model or file, no login, no network, in the words of several libraries
        return None


def families() -> dict[str, type]:
    """Every family of ours, by the name of its class."""
    return {cls.__name__: cls for cls in (registry.find("models", name) for name in registry.names("models"))}


def _read(config: Path, source: str, where: str, **options: Any) -> ModelMixin:
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
