"""Model families, one file each: mdt.py (MDTv2), dit.py (DiT). A family is a diffusers ModelMixin."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from torch import Tensor, nn

from dit_shd import registry
from dit_shd.errors import UserError
from dit_shd.models import _public
from dit_shd.models._transformer import LatentTransformer
from dit_shd.models.dit import DiT
from dit_shd.models.mdt import MDTv2

__all__ = ["DiT", "MDTv2", "export", "load"]


def load(source: str | Path) -> ModelMixin:
    """A model from a run folder, a diffusers folder, a public checkpoint file, or `asset:NAME` (ships with us).

    Raises:
        UserError: nothing there, or something else.
    """
    source = str(source)
    if source.startswith("asset:"):
        assets = Path(str(resources.files("dit_shd") / "assets"))
        known = {folder.parent.name: folder.parent for folder in assets.glob("*/config.json")}
        name = source.removeprefix("asset:")
        if name not in known:
            raise UserError(f"{source}: no such model among dit_shd's assets; there is: {', '.join(known)}")
        return _from_folder(known[name])
    path = Path(source)
    if path.is_file():
        return of_public(_public.read_tensors(path))
    if (path / "student" / "config.json").is_file():
        return _from_folder(path / "student")
    if (path / "config.json").is_file():
        return _from_folder(path)
    raise UserError(f"{path}: wanted a run folder with a student, a diffusers model folder or a checkpoint file")


def of_public(state: Mapping[str, Tensor], heads: int | None = None) -> ModelMixin:
    """A model from a public state dict of whichever family of ours it is.

    Args:
        heads: as in LatentTransformer.from_public.

    Raises:
        UserError: none of them, or something in it does not fit.
    """
    known = {cls.__name__: cls for cls in families().values() if issubclass(cls, LatentTransformer)}
    for cls in known.values():
        if cls.is_public(_public.clean(state)):
            return cls.from_public(state, heads)
    first = ", ".join(sorted(state)[:2]) or "none"
    raise UserError(f"not a state dict of {' or '.join(known)}: none has tensors of these names ({first}, ...)")


def families() -> dict[str, type]:
    """Every family of ours, by the name of its class."""
    return {cls.__name__: cls for cls in (registry.find("models", name) for name in registry.names("models"))}


def of_run(config: Any) -> Any:
    """A SampleConfig with what the run folder it names knows: the steps of the noise schedule."""
    from dit_shd.config import read_yaml

    file = Path(config.run) / "config.yaml"
    steps = read_yaml(file).get("diffusion_steps") if file.is_file() else None
    return replace(config, diffusion_steps=steps) if isinstance(steps, int) else config


def digest(model: nn.Module) -> str:
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
    cls: Any = families().get(name) or _diffusers_class(name)
    if cls is None:
        raise UserError(f"{folder}: model class '{name}' is neither ours ({', '.join(families())}) nor diffusers'")
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
    from dit_shd.checkpoint import replacing
    from dit_shd.config import dump

    with replacing(folder) as part:
        model.save_pretrained(part, safe_serialization=True)
        millions = sum(p.numel() for p in model.parameters()) / 1e6
        card = CARD.format(family=type(model).__name__, millions=millions, step=step, config=dump(config))
        (part / "README.md").write_text(card, encoding="utf-8")
