"""Versions, machine and command line of this process, as recorded beside results."""

import platform
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from dit_shd import __version__

PACKAGES = ("numpy", "torch-fidelity", "timm", "pillow")


def about_process() -> dict[str, Any]:
    """Versions, machine and command."""
    versions = {"dit_shd": __version__, "python": platform.python_version(), "torch": torch.__version__}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {"versions": versions, "platform": platform.platform(), "command": command()}


def command() -> str:
    """The command line that is running, as a user can type it again."""
    name = Path(sys.argv[0]).name
    return shlex.join(["dit-shd" if name in ("dit-shd", "__main__.py") else name, *sys.argv[1:]])
