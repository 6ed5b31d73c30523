"""The foot of a page: what made it, and the files that it was made from."""

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from dit_shd import __version__
from dit_shd.reports.html import Link
from dit_shd.reports.tables import facts

METHOD = "arXiv 2502.07436, Squeezing-Heads Distillation"


def versions() -> str:
    """The versions of dit_shd, torch and Python."""
    return f"dit_shd {__version__}, torch {torch.__version__}, python {platform.python_version()}"


def machine() -> str:
    """This machine's processor, and its system."""
    return f"{platform.machine()}, {os.cpu_count()} CPU cores, {platform.system()}"


def page_footer(
    about: Mapping[str, str | Link], page: Path, commands: Mapping[str, str] | None = None, copied: bool = False
) -> str:
    """The foot of a page as HTML.

    Args:
        about: Name -> value.
        page: The page, which links are relative to.
        commands: Stage -> the command that does it alone, below.
        copied: Whether each value has a button that copies it; a command always has.
    """
    stages = "" if commands is None else "<p>The commands of each stage:</p>" + facts(commands, page, copied=True)
    return f"<footer>{facts(about, page, copied)}{stages}</footer>"


def files_beside(names: Sequence[str], page: Path) -> dict[str, str | Link]:
    """Links to the files that `dit-shd inspect` writes beside its page: numbers, and numbered pictures."""
    return {
        ("numbers" if name.endswith("json") else f"file {i}"): Link(name, page.parent / name)
        for i, name in enumerate(names)
    }
