"""Folders of diffusers models, here, on the hub and among our assets: where they are, and their weights read safely."""

import json
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from dit_shd.core.errors import UserError
from dit_shd.core.places import WANTED, HubName, find, one_line

RECORD, COPY = "autoencoder.json", "vae"


def asset(name: str) -> Path:
    """The folder of `asset:NAME`."""
    assets = Path(str(resources.files("dit_shd") / "assets"))
    known = {folder.parent.name: folder.parent for folder in assets.glob("*/config.json")}
    if name not in known:
        raise UserError(f"asset:{name}: no such model among dit_shd's assets; there is: {', '.join(known)}")
    return known[name]


PLACES = ("student", ".", "transformer")
"""Where in a folder the model may be: of a run, of a model, of a pipeline."""
WEIGHTS = re.compile(
    r"diffusion_pytorch_model(-\d+-of-\d+)?(\.(?P<variant>\w+))?(-\d+-of-\d+)?\.(?P<kind>safetensors|bin)"
)
"""How diffusers names files of weights: parts of several, and a variant as fp16, may be told."""
LIBRARY_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
"""How timm and transformers do."""

_log = logging.getLogger("dit_shd")


def model_folder(path: Path) -> Path | None:
    """The diffusers folder in a run, a model's or a pipeline's folder; None where there is none."""
    return next((path / place for place in PLACES if (path / place / "config.json").is_file()), None)


def read_config(folder: Path) -> dict[str, Any]:
    """What a folder's config.json says; empty where it says nothing that can be read."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def class_name(folder: Path) -> str:
    """The class that a folder's config.json names.

    Raises:
        UserError: it is no diffusers model's.
    """
    name = read_config(folder).get("_class_name")
    if not isinstance(name, str):
        raise UserError(f"{folder}/config.json: not the config of a diffusers model (no _class_name)")
    return name


def read_weights(cls: Any, folder: Path, variant: str | None = None) -> Any:
    """A model of a diffusers class from its folder; nothing in the files is executed, and nothing asked of the hub.

    Args:
        variant: which weights, where there are several (fp16); None: those without a variant, or the only one.

    Raises:
        UserError: no weights, several variants to choose from, or weights that do not fit config.json.
    """
    chosen = choose_weights((file.name for file in folder.iterdir()), str(folder), variant)
    try:  # weights that are no safetensors are read with weights_only by diffusers
        model, told = cls.from_pretrained(
            str(folder),
            variant=chosen.variant,
            use_safetensors=chosen.safe,
            output_loading_info=True,
            local_files_only=True,
        )
    except Exception as error:  # a stranger's folder can be wrong in any way
        raise UserError(f"{folder}: cannot be read as {cls.__name__}: {_reason(error)}") from error
    for wrong, words in (("missing_keys", "missing"), ("unexpected_keys", "unknown"), ("mismatched_keys", "misshapen")):
        if told[wrong]:
            count, first = len(told[wrong]), sorted(told[wrong])[0]
            raise UserError(f"{folder}: the weights do not fit config.json: {count} {words}, first {first}")
    if chosen.note:
        _log.info("%s: %s", folder, chosen.note)
    return model


def _reason(error: Exception) -> str:
    """What is wrong with a folder, of the libraries' words those that help."""
    text = one_line(error, 300)
    if text.startswith("Cannot load because "):
        misfit = text.removeprefix("Cannot load because ").partition(". If you want")[0]
        return f"the weights do not fit config.json: {misfit}"
    if text.startswith("Unable to load weights from checkpoint file"):
        return "its file of weights is damaged; copy or download it again"
    if isinstance(error, (TypeError, AttributeError)):
        return f"a value in config.json is of a kind that it cannot be ({text[:120]})"
    return text[:200]


@dataclass(frozen=True)
class Chosen:
    """Which of a folder's weights are read: their files, and how diffusers is told so."""

    files: list[str]
    variant: str | None
    safe: bool
    """They are safetensors."""
    note: str
    """What a user should know of the choice."""


def choose_weights(names: Iterable[str], where: str, variant: str | None = None) -> Chosen:
    """Of the names in a diffusers folder the weights to read: without a variant before the only one, safetensors
    before PyTorch files.

    Args:
        variant: as in read_weights.

    Raises:
        UserError: none, or several variants.
    """
    found: dict[tuple[str, bool], list[str]] = {}
    names = sorted(names)
    for name in names:
        match = WEIGHTS.fullmatch(name)
        if match:
            found.setdefault((match["variant"] or "", match["kind"] == "safetensors"), []).append(name)
    variants = sorted({key[0] for key in found})
    if not variants:
        others = ", ".join(
            name for name in names if name.endswith((".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".sft"))
        )
        raise UserError(
            f"{where}: wanted diffusion_pytorch_model.safetensors beside config.json, found {others or 'no weights'}"
        )
    wanted = variant or ("" if "" in variants or len(variants) > 1 else variants[0])
    if wanted not in variants:
        files = [found[key][0] for key in sorted(found)]
        raise UserError(
            f"{where}: holds weights of several variants ({', '.join(variants)}); name the file: {where}/{files[0]}"
        )
    safe = (wanted, True) in found
    notes = [f"its only weights are of variant {wanted}, read as float32"] if wanted and variant is None else []
    notes += [] if safe else ["read from a PyTorch file (.bin), without running code"]
    index = [f"diffusion_pytorch_model.{'safetensors' if safe else 'bin'}.index{'.' + wanted if wanted else ''}.json"]
    return Chosen([*found[(wanted, safe)], *index], wanted or None, safe, "; ".join(notes))


def _library_weights(names: Sequence[str]) -> list[str]:
    """The safetensors of a repository of timm or transformers; empty where it has weights as diffusers names them."""
    if any(WEIGHTS.fullmatch(name) for name in names):
        return []
    return [name for name in names if LIBRARY_WEIGHTS.fullmatch(name)]


def autoencoder_folder(source: str | Path) -> Path:
    """The folder of an autoencoder that a user names: itself, a pipeline's, or of the hub.

    Raises:
        UserError: there is none.
    """
    place = find(source, "autoencoder")
    if isinstance(place, HubName):
        return of_hub(place, (".", "vae"))
    assert isinstance(place, Path)
    folder = next((place / inside for inside in (".", "vae") if (place / inside / "config.json").is_file()), None)
    if folder is None:
        raise UserError(f"'{source}': wanted {WANTED['autoencoder']}, found no config.json in it")
    return folder


def of_hub(name: HubName, places: Sequence[str] = (".", "transformer")) -> Path:
    """The local folder of a model of the hub, whose files are fetched first, or what of it is in the local cache.

    Args:
        places: where in the repository it may be.

    Raises:
        UserError: no such repository, none with a model, or no network.
    """
    configs = [f"{place}/config.json".removeprefix("./") for place in places]
    files = name.files()
    if files is None:
        cached = next(filter(None, map(name.cached, configs)), None)
        if cached is None:
            raise name.unreachable()
        return cached.parent
    config = next((config for config in configs if config in files), None)
    if config is None:
        raise UserError(f"{name}: wanted a repository with {' or '.join(configs)}, it has none")
    inside = config.removesuffix("config.json")
    names = [f.removeprefix(inside) for f in files if f.startswith(inside)]
    weights = _library_weights(names) or choose_weights(names, str(name)).files
    wanted = [config, *(inside + file for file in weights), "README.md", RECORD]
    return name.download([file for file in wanted if file in files]) / inside
