"""Model families, one file each: mdt.py (MDTv2). A family is a diffusers ModelMixin."""

import hashlib
import json
import re
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin

from dit_shd import registry
from dit_shd.errors import UserError
from dit_shd.models import _public
from dit_shd.models.mdt import MDTv2

__all__ = ["MDTv2", "export", "exported_step", "load"]


def load(source: str | Path) -> ModelMixin:
    """A model from a run folder, a diffusers folder, a public MDTv2 checkpoint file, or `asset:NAME` (ships with us).

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
        assets = Path(str(resources.files("dit_shd") / "assets"))
        known = {folder.parent.name: folder.parent for folder in assets.glob("*/config.json")}
        name = source.removeprefix("asset:")
        if name not in known:
            raise UserError(f"{source}: no such model among dit_shd's assets; there is: {', '.join(known)}")
        return _from_folder(known[name])
    path = Path(source)
    if path.is_file():
        return MDTv2.from_public(_public.read_tensors(path))
    if (path / "student" / "config.json").is_file():
        return _from_folder(path / "student")
    if (path / "config.json").is_file():
        return _from_folder(path)
    raise UserError(f"{path}: wanted a run folder with a student, a diffusers model folder or a checkpoint file")


def of_run(config: Any) -> Any:
    """A SampleConfig with what the run folder it names knows: the steps of the noise schedule."""
    from dit_shd.config import read_yaml

    file = Path(config.run) / "config.yaml"
    steps = read_yaml(file).get("diffusion_steps") if file.is_file() else None
    return replace(config, diffusion_steps=steps) if isinstance(steps, int) else config


def digest(model: ModelMixin) -> str:
    """sha256 of a model's tensors, by name."""
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        total.update(name.encode())
        total.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def _from_folder(folder: Path) -> ModelMixin:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        name = config["_class_name"]
        if not isinstance(name, str):
            raise ValueError("_class_name is no text")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{folder}/config.json: not the config of a diffusers model") from error
    families = {cls.__name__: cls for cls in (registry.find("models", n) for n in registry.names("models"))}
    cls = families.get(name) or _diffusers_class(name)
    if cls is None:
        raise UserError(f"{folder}: model class '{name}' is neither ours ({', '.join(families)}) nor diffusers'")
    try:
        model, told = cls.from_pretrained(folder, use_safetensors=True, output_loading_info=True)
    except Exception as error:  # a stranger's folder can be wrong in any way
        raise UserError(f"{folder}: cannot be read as {name}: {' '.join(str(error).split())[:200]}") from error
    for wrong, words in (("missing_keys", "missing"), ("unexpected_keys", "unknown"), ("mismatched_keys", "misshapen")):
        if told[wrong]:
            count, first = len(told[wrong]), sorted(told[wrong])[0]
            raise UserError(f"{folder}: the weights do not fit config.json: {count} {words}, first {first}")
    return model.float()


def _diffusers_class(name: str) -> Any:
    import diffusers

    cls = getattr(diffusers, name, None)
    return cls if isinstance(cls, type) and issubclass(cls, ModelMixin) and cls is not ModelMixin else None


CARD = """---
library_name: dit_shd
tags: [diffusion, knowledge-distillation]
---
# {family}, {millions:.2f} M parameters

Trained by dit_shd for {step} steps (averaged weights). Load: `dit_shd.models.load("this folder")`.

```yaml
{config}```
"""


def export(model: Any, folder: Path, config: Any, step: int) -> None:
    """Write a model in diffusers format with a model card, replacing the last: a reader sees one of the two, whole."""
    from dit_shd.config import dump
    from dit_shd.files import replacing

    with replacing(folder) as part:
        model.save_pretrained(part, safe_serialization=True)
        millions = sum(p.numel() for p in model.parameters()) / 1e6
        card = CARD.format(family=type(model).__name__, millions=millions, step=step, config=dump(config))
        (part / "README.md").write_text(card, encoding="utf-8")


def exported_step(folder: Path) -> int | None:
    """The training step that the model card of an export tells; None where there is none."""
    try:
        card = (folder / "README.md").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    found = re.search(r"^Trained by dit_shd for (\d+) steps", card, re.MULTILINE)
    return int(found[1]) if found else None
