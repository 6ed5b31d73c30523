"""Model cards, and what they say of a model's origin: licence, what it learned from, data. It is read back from a
teacher's card for its student's, so that a chain of distillations forgets nothing.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from dit_shd import registry
from dit_shd.errors import UserError, one_line
from dit_shd.file_kinds import SAFETENSORS, file_kind
from dit_shd.places import HubName

if TYPE_CHECKING:
    from dit_shd.latent_origin import Origin

PERMISSIVE = ("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0")
"""Licences that leave what is learned from the weights to whoever learned it, named as the hub names them."""
SHOWN = 20
"""Classes that a card names."""
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


def of_hub(name: HubName) -> Provenance:
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
    return Provenance(license, *(_union(getattr(s, key) for s in sources) for key in LISTS))


LISTS = ("base_model", "learned_from", "trained_on")


def _union(lists: Any) -> tuple[str, ...]:
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
    from dit_shd.config import parse_yaml

    text = card.read_text(encoding="utf-8", errors="replace")
    found = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text, re.DOTALL)
    try:
        values = parse_yaml(found[1]) if found else None
    except yaml.YAMLError:
        values = None
    return {str(k): v for k, v in values.items()} if isinstance(values, dict) else {}


def metadata(origin: Provenance) -> dict[str, str]:
    """For the head of a safetensors file, whose values are texts; of_file reads it."""
    lists = {key: "\n".join(getattr(origin, key)) for key in LISTS}
    return {k: v for k, v in {"format": "pt", "license": origin.license or "", **lists}.items() if v}


def trained(
    model: Any, config: Any, step: int, origin: Provenance, rate: float, latents: "Origin | None" = None
) -> str:
    """The card of a model that dit_shd trained.

    Args:
        origin: of what it learned from. rate: of the average that its weights are.
        latents: of which autoencoder they are; None: pixels.
    """
    from dit_shd.averages import share_of_first
    from dit_shd.config import dump

    share = share_of_first(rate, step, config.ema_warmup)
    weights = {
        "weights": "average",
        "steps": step,
        "ema": rate,
        "ema_warmup": config.ema_warmup,
        "share_of_first_weights": float(f"{share:.4g}"),
    }

    data = _data(config.data)
    return _text(
        model,
        replace(origin, trained_on=_union([[data], origin.trained_on])),
        f"Trained by dit_shd for {step} steps. The weights are their average over training (ema {rate}"
        f"{', warmed up' if config.ema_warmup else ''}), {share:.2%} of which are those it began with. "
        'Load: `dit_shd.models.load("this folder")`.',
        f"{_classes(model)}{autoencoder_words(latents)}## Configuration\n\n```yaml\n{dump(config)}```\n",
        {"training": weights},
    )


def _classes(model: Any) -> str:
    """The section on the classes that the training saw; nothing where it saw all of them and they have no names."""
    names = model.config.get("class_names")
    if names is None:
        return ""
    seen = [f"{i} {one_line(name)}".strip() for i, name in enumerate(names) if name is not None]
    listed = ", ".join(seen[:SHOWN]) + (", ... (config.json has all of them)" if len(seen) > SHOWN else "")
    return f"## Classes\n\n{len(seen)} of {len(names)} were trained: {listed}.\n\n"


def autoencoder_words(latents: "Origin | None") -> str:
    """The card's section about the autoencoder; empty where latents are pixels."""
    if latents is None:
        return ""
    if not latents.vae:
        return "## Autoencoder\n\nIt makes latents, and the data did not tell of which autoencoder.\n\n"
    told = f"; the sha256 of its tensors is {latents.vae_sha256}" if latents.vae_sha256 else ""
    return (
        f"## Autoencoder\n\nIt makes latents of {latents.vae}{told}. `dit-shd sample` decodes with the copy in the run "
        "folder (`vae/`), or with the one of that name if it is the same.\n\n"
    )


def converted(model: Any, source: str, sha256: str, origin: Provenance, latents: "Origin | None" = None) -> str:
    """The card of a model that was read from a file or folder of others."""
    return _text(
        model,
        origin,
        f"Converted by dit_shd from {source}; the sha256 of its tensors is {sha256}. "
        'Load: `dit_shd.models.load("this folder")`.',
        autoencoder_words(latents),
    )


def _data(plugin: Any) -> str:
    """A dataset in words."""
    cls: Any = registry.find("data", plugin.name)
    try:
        return cls.described(**plugin.options)
    except UserError:  # it has been moved away since the training began
        return super(cls, cls).described(**plugin.options)


def _text(model: Any, origin: Provenance, first: str, last: str, more: Mapping[str, Any] | None = None) -> str:
    head: dict[str, Any] = {"library_name": "dit_shd"}
    if origin.license is not None:
        head["license"] = origin.license
    head["tags"] = ["diffusion", "knowledge-distillation"]
    head |= more or {}
    head |= {key: list(getattr(origin, key)) for key in LISTS if getattr(origin, key)}
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---",
        f"# {type(model).__name__}, {millions:.2f} M parameters\n\n{first}",
        f"## Licence\n\n{licence_words(origin)}",
    ]
    for title, items in (("Made from", origin.learned_from), ("Data", origin.trained_on)):
        if items:
            parts.append(f"## {title}\n\n" + "\n".join(f"- {item}" for item in items))
    return "\n\n".join([*parts, last]).rstrip() + "\n"


def licence_words(origin: Provenance) -> str:
    """What the licence means for whoever takes the weights."""
    if origin.license is None:
        return "No model's licence is inherited: whoever trained these weights chooses one."
    if origin.license == "unknown":
        return "Unknown: nothing says under which licence the models behind these weights are. Ask their makers."
    if origin.license in PERMISSIVE:
        return f"{origin.license}, as the models behind these weights are."
    rule = "no commercial use" if origin.noncommercial else "their licences bind what is made of these weights"
    return f"{origin.license}, inherited from the models behind these weights: {rule}."
