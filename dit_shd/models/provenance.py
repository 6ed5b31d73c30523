"""Where weights come from, and under which licence."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from dit_shd.core.errors import UserError
from dit_shd.core.file_kinds import SAFETENSORS, file_kind
from dit_shd.core.places import Asset, HubName, find
from dit_shd.core.pretrained import asset, model_folder
from dit_shd.core.yaml_files import parse_yaml

PERMISSIVE = ("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0")
"""Licences that leave what is learned from the weights to whoever learned it, named as the hub names them."""


IMAGENET = "ImageNet-1k (its images are for non-commercial research and education)"


@dataclass(frozen=True)
class Provenance:
    """Where weights come from."""

    license: str | None = None
    """As the hub names it; `unknown` where nobody said; None: made here, inherits nothing."""
    base_model: tuple[str, ...] = ()
    """Models of the hub that the weights are, or learned from."""
    learned_from: tuple[str, ...] = ()
    """All models behind the weights with their licences, nearest first."""
    trained_on: tuple[str, ...] = ()
    """All data behind the weights."""

    @property
    def noncommercial(self) -> bool:
        return "-nc" in (self.license or "")


def _public(name: str, license: str) -> Provenance:
    return Provenance(license, (name,), (f"{name} ({license})",), (IMAGENET,))


PUBLIC = {
    "DiT-XL-2-256x256": _public("facebook/DiT-XL-2-256", "cc-by-nc-4.0"),
    "DiT-XL-2-512x512": _public("facebook/DiT-XL-2-512", "cc-by-nc-4.0"),
    "mdt_xl2_v2_ckpt": _public("shgao/MDT-XL2", "apache-2.0"),
}
"""The public checkpoints by the names of their files."""


def of_file(path: Path) -> Provenance:
    """Of a checkpoint file: known by its name, or told by what a safetensors file says of itself."""
    if path.stem in PUBLIC:
        return PUBLIC[path.stem]
    told: Mapping[str, Any] = {}
    if file_kind(path) == SAFETENSORS:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                told = {k: v.split("\n") if k in LISTS else v for k, v in (file.metadata() or {}).items()}
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: not a readable safetensors file ({error})") from error
    return _told(path.name, told)


def of_folder(name: str, folder: Path) -> Provenance:
    """Of a diffusers folder: what its card (or the one of the pipeline it is in) says."""
    cards = [folder / "README.md", *([folder.parent / "README.md"] if folder.name == "transformer" else [])]
    return _told(name, next((front_matter(card) for card in cards if card.is_file()), {}))


def of_hub_model(name: HubName) -> Provenance:
    """Of a model of the hub: one of the public ones, or what its card says."""
    for known in PUBLIC.values():
        if name.repository in known.base_model:
            return known
    card = name.file("README.md")
    found = _told(str(name), {} if card is None else front_matter(card))
    return replace(found, base_model=(name.repository, *found.base_model))


def inherited(sources: Sequence[Provenance]) -> Provenance:
    """Of weights made from some others: everything that is behind those, and the licence that binds most.

    One that is not permissive goes before one that nobody named, and that before permissive ones; two different ones
    that are not permissive are `other`.
    """
    licenses = [source.license for source in sources if source.license is not None]
    binding = sorted(set(licenses) - {"unknown", *PERMISSIVE})
    if len(binding) > 1:
        license: str | None = "other"
    elif binding:
        license = binding[0]
    else:
        license = "unknown" if "unknown" in licenses else next(iter(licenses), None)
    return Provenance(license, *(union(getattr(s, key) for s in sources) for key in LISTS))


LISTS = ("base_model", "learned_from", "trained_on")


def union(lists: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(item for each in lists for item in each))


def _told(name: str, values: Mapping[str, Any]) -> Provenance:
    """What a card or a file's metadata say, and the model itself as the nearest of what is learned from it."""
    license = values.get("license")
    lists = {key: tuple(str(x) for x in _list(values.get(key)) if str(x).strip()) for key in LISTS}
    if not isinstance(license, str) or not license:
        license = None if values.get("library_name") == "dit_shd" and not lists["learned_from"] else "unknown"
    itself = f"{name} ({license or 'its maker chooses the licence'})"
    return Provenance(license, **{**lists, "learned_from": (itself, *lists["learned_from"])})


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def front_matter(card: Path) -> dict[str, Any]:
    """The YAML at the head of a card; empty where there is none that can be read."""
    text = card.read_text(encoding="utf-8", errors="replace")
    found = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    try:
        values = parse_yaml(found[1]) if found else None
    except yaml.YAMLError:
        values = None
    return {str(k): v for k, v in values.items()} if isinstance(values, dict) else {}


def provenance(source: str | Path) -> Provenance:
    """Where the weights that `load(source)` reads come from, as far as their card or file tells."""
    try:
        place = find(source, "model")
    except UserError:  # it has been moved away since it was loaded
        return Provenance("unknown")
    if isinstance(place, Asset):
        return of_folder(str(source), asset(place.name))
    if isinstance(place, HubName):
        return of_hub_model(place)
    if place.is_file():
        return of_file(place)
    folder = model_folder(place)
    return Provenance("unknown") if folder is None else of_folder(place.resolve().name, folder)
