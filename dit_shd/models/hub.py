"""Names, places and files of models: of this machine, of the hub, of our assets."""

import re
from importlib import resources
from pathlib import Path

from dit_shd.core.errors import UserError


def asset(source: str) -> Path:
    """The folder of `asset:NAME`."""
    assets = Path(str(resources.files("dit_shd") / "assets"))
    known = {folder.parent.name: folder.parent for folder in assets.glob("*/config.json")}
    name = source.removeprefix("asset:")
    if name not in known:
        raise UserError(f"{source}: no such model among dit_shd's assets; there is: {', '.join(known)}")
    return known[name]


HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
"""OWNER/NAME"""
PLACES = ("student", ".", "transformer")
"""Where in a folder the model may be: of a run, of a model, of a pipeline."""


def model_folder(path: Path) -> Path | None:
    """The diffusers folder in a run, a model's or a pipeline's folder; None where there is none."""
    return next((path / place for place in PLACES if (path / place / "config.json").is_file()), None)


def hub_file(name: str, file: str) -> Path | None:
    """One file of a model of the hub, in the local cache; None if it cannot be had."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, file))
    except Exception:  # no such model or file, no login, no network, in the words of several libraries
        return None
