"""The provenance of weights: the models and data behind them, and the licence."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from dit_shd.core.errors import UserError
from dit_shd.core.file_kinds import SAFETENSORS, file_kind
from dit_shd.core.places import Asset, HubName, find
from dit_shd.core.pretrained import asset, folder_of_weights, model_folder
from dit_shd.core.yaml_files import parse_yaml

PERMISSIVE = ("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0")
"""Licences under which a model that learned from the weights may have any licence, in the hub's names."""
NONCOMMERCIAL = re.compile(r"\bnc\b|non.?commercial")
NO_DERIVATIVES = re.compile(r"\bnd\b|no.?deriv")
"""Marks in the names of licences, in small letters."""
LINK, MAKER = ", http", "its maker chooses the licence"
"""In an item of `learned_from`: what the link to a licence's text begins with; what it says of no licence."""
IMAGENET = "ImageNet-1k (its images are for non-commercial research and education)"


@dataclass(frozen=True)
class Provenance:
    """The licence of weights, and the models and data behind them."""

    license: str | None = None
    """In the hub's names; `unknown` where none is named; None: trained by dit_shd, inherits nothing."""
    base_model: tuple[str, ...] = ()
    """Models of the hub that the weights are of, or learned from."""
    learned_from: tuple[str, ...] = ()
    """All models behind the weights with their licences, nearest first."""
    trained_on: tuple[str, ...] = ()
    """All data behind the weights."""

    @property
    def noncommercial(self) -> bool:
        """Whether the licence excludes commercial use."""
        return self._says(NONCOMMERCIAL)

    @property
    def forbids_derivatives(self) -> bool:
        """Whether the licence excludes that what is made of the weights is passed on."""
        return self._says(NO_DERIVATIVES)

    @property
    def named(self) -> tuple[tuple[str, str], ...]:
        """What the models behind the weights call the licences that are `other` together: name, and link or ""."""
        parts = [text.partition(LINK) for text in self._binding if text not in ("other", "unknown")]
        return tuple((name, mark.removeprefix(", ") + link) for name, mark, link in parts)

    @property
    def only_name(self) -> tuple[str, str] | None:
        """The one of them that binds alone, beside permissive ones; None of several, or where one is not known."""
        return self.named[0] if len(self._binding) == len(self.named) == 1 else None

    @property
    def _binding(self) -> list[str]:
        """What items say of their licences, each once, but for permissive ones."""
        items = self.learned_from if self.license == "other" else ()
        texts = dict.fromkeys(item.rpartition(" (")[2].removesuffix(")") for item in items)
        return [text for text in texts if text not in (MAKER, *PERMISSIVE)]

    def _says(self, mark: re.Pattern[str]) -> bool:
        """Whether the licence, or of several different ones (`other`) any, has a mark in its name."""
        return any(mark.search(text) for text in (self.license or "", *(name for name, _ in self.named)))


def _public(name: str, license: str) -> Provenance:
    return Provenance(license, (name,), (f"{name} ({license})",), (IMAGENET,))


PUBLIC = {
    "DiT-XL-2-256x256": _public("facebook/DiT-XL-2-256", "cc-by-nc-4.0"),
    "DiT-XL-2-512x512": _public("facebook/DiT-XL-2-512", "cc-by-nc-4.0"),
    "mdt_xl2_v2_ckpt": _public("shgao/MDT-XL2", "apache-2.0"),
}
"""The public checkpoints by the names of their files."""


def of_file(path: Path) -> Provenance:
    """The provenance of a checkpoint file: by the name of a public one, or by the metadata of a safetensors file."""
    if path.stem in PUBLIC:
        return PUBLIC[path.stem]
    metadata: Mapping[str, Any] = {}
    if file_kind(path) == SAFETENSORS:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                metadata = {k: v.split("\n") if k in LISTS else v for k, v in (file.metadata() or {}).items()}
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path}: not a readable safetensors file ({error})") from error
    return _from_metadata(path.name, metadata)


def of_folder(name: str, folder: Path) -> Provenance:
    """The provenance of a diffusers folder, by its card or that of the pipeline it is in."""
    cards = [folder / "README.md", *([folder.parent / "README.md"] if folder.name == "transformer" else [])]
    return _from_metadata(name, next((front_matter(card) for card in cards if card.is_file()), {}))


def of_hub_model(name: HubName) -> Provenance:
    """The provenance of a model of the hub: that of a public checkpoint, or by its card."""
    for public in PUBLIC.values():
        if name.repository in public.base_model:
            return public
    card = name.file("README.md")
    origin = _from_metadata(str(name), {} if card is None else front_matter(card))
    return replace(origin, base_model=(name.repository, *origin.base_model))


def inherited(sources: Sequence[Provenance]) -> Provenance:
    """The provenance of weights that learned from others: all behind those, and their most restrictive licence.

    A licence that is not permissive precedes `unknown`, and that the permissive ones; two different licences that are
    not permissive make `other`.
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


def union(lists: Iterable[Iterable[str]]) -> tuple[str, ...]:
    """The items of all lists, each once, in order."""
    return tuple(dict.fromkeys(item for items in lists for item in items))


def _from_metadata(name: str, values: Mapping[str, Any]) -> Provenance:
    """The provenance by the metadata of a card or file; the model itself comes first in `learned_from`."""
    licenses = [item.strip().lower() for item in _list(values.get("license")) if isinstance(item, str) and item.strip()]
    license = inherited([Provenance(text) for text in licenses]).license if licenses else None
    lists = {key: tuple(str(x) for x in _list(values.get(key)) if str(x).strip()) for key in LISTS}
    if license is None and not (_is_ours(values) and all(x.endswith(f"({MAKER})") for x in lists["learned_from"])):
        license = "unknown"
    named = _other(licenses, values) if license == "other" else license
    itself = f"{name} ({named or MAKER})"
    return Provenance(license, **{**lists, "learned_from": (itself, *lists["learned_from"])})


def _is_ours(values: Mapping[str, Any]) -> bool:
    """Whether a card was written here, where every licence behind a model is known; its library may be another."""
    training = values.get("training")
    recorded = isinstance(training, dict) and "share_of_first_weights" in training
    return recorded or values.get("library_name") == "dit_shd"


def _other(licenses: Sequence[str], values: Mapping[str, Any]) -> str:
    """What a licence is that the hub's names do not name: what a card calls it, and where its text is."""
    texts = [re.sub(r"[()\s]+", " ", str(values.get(key) or "")).strip() for key in ("license_name", "license_link")]
    name, link = texts[0].lower() or ", ".join(licenses), texts[1]
    return f"{name}, {link}" if link.startswith(("http://", "https://")) else name


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else [] if value is None else [value]


def front_matter(card: Path) -> dict[str, Any]:
    """The YAML at the head of a card; empty where there is none, or it is not valid."""
    text = card.read_text(encoding="utf-8", errors="replace")
    match = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    try:
        values = parse_yaml(match[1]) if match else None
    except yaml.YAMLError:
        values = None
    return {str(k): v for k, v in values.items()} if isinstance(values, dict) else {}


def provenance(source: str | Path) -> Provenance:
    """The provenance of the weights that `load(source)` reads, by their card or file."""
    try:
        path = find(source, "model")
    except UserError:  # moved away since it was loaded
        return Provenance("unknown")
    if isinstance(path, Asset):
        return of_folder(str(source), asset(path.name))
    if isinstance(path, HubName):
        return of_hub_model(path)
    folder = folder_of_weights(path) if path.is_file() else model_folder(path)
    if folder is None and path.is_file():
        return of_file(path)
    return Provenance("unknown") if folder is None else of_folder(path.resolve().name, folder)
