"""Model families, one file each: mdt.py (MDTv2). A family is a diffusers ModelMixin."""

import json
from importlib import resources
from pathlib import Path
from typing import Any

from diffusers import ModelMixin

from dit_shd import registry
from dit_shd.errors import UserError
from dit_shd.models import _public
from dit_shd.models.mdt import MDTv2

__all__ = ["MDTv2", "export", "load"]


def load(source: str | Path) -> ModelMixin:
    """A model from a run folder, a diffusers folder, a public MDTv2 checkpoint file, or `asset:NAME` (ships with us).

    Raises:
        UserError: nothing there, or something else.
    """
    source = str(source)
    if source.startswith("asset:"):
        folder = Path(str(resources.files("dit_shd") / "assets" / source.removeprefix("asset:")))
        if not folder.is_dir():
            raise UserError(f"{source}: no such model among dit_shd's assets")
        return _from_folder(folder)
    path = Path(source)
    if path.is_file():
        return MDTv2.from_public(_public.read_tensors(path))
    if (path / "student" / "config.json").is_file():
        return _from_folder(path / "student")
    if (path / "config.json").is_file():
        return _from_folder(path)
    raise UserError(f"{path}: wanted a run folder with a student, a diffusers model folder or a checkpoint file")


def _from_folder(folder: Path) -> ModelMixin:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        name = config["_class_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}/config.json: not the config of a diffusers model") from error
    families = {cls.__name__: cls for cls in (registry.find("models", n) for n in registry.names("models"))}
    cls = families.get(name) or _diffusers_class(name)
    if cls is None:
        raise UserError(f"{folder}: model class '{name}' is neither ours ({', '.join(families)}) nor diffusers'")
    try:
        return cls.from_pretrained(folder, use_safetensors=True).float()
    except (OSError, ValueError, RuntimeError, TypeError) as error:
        raise UserError(f"{folder}: cannot be read as {name}: {' '.join(str(error).split())[:200]}") from error


def _diffusers_class(name: str) -> Any:
    import diffusers

    cls = getattr(diffusers, name, None)
    return cls if isinstance(cls, type) and issubclass(cls, ModelMixin) else None


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
    """Write a model in diffusers format with a model card, replacing the last export in one step."""
    from dit_shd.checkpoint import replacing
    from dit_shd.config import dump

    with replacing(folder) as part:
        model.save_pretrained(part, safe_serialization=True)
        millions = sum(p.numel() for p in model.parameters()) / 1e6
        card = CARD.format(family=type(model).__name__, millions=millions, step=step, config=dump(config))
        (part / "README.md").write_text(card, encoding="utf-8")
