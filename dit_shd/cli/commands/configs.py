"""List the experiments that ship with dit_shd, or copy one to change it.

dit-shd configs                      their names, what they do and what they cost
dit-shd configs digits_shd           digits_shd.yaml here, to be edited
dit-shd train digits_shd steps=100   an experiment runs by its name, too
"""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import ClassVar

import yaml

from dit_shd.cli.commands import Command
from dit_shd.core import shipped_configs
from dit_shd.core.config import option
from dit_shd.core.errors import UserError
from dit_shd.core.files import write_text
from dit_shd.core.yaml_files import parse_yaml, read_yaml


@dataclass(frozen=True)
class ConfigsConfig:
    """The experiment and where its copy goes."""

    name: str = option("", "an experiment to copy; all are listed if left out")
    out: Path | None = option(None, "the copy; empty: NAME.yaml in the working folder")


class Configs(Command[ConfigsConfig]):
    """List the experiments that ship with dit_shd, or copy one."""

    config = ConfigsConfig
    words: ClassVar = {"name": "[NAME]"}
    words_help = "an experiment to copy; all are listed without it"

    def run(self, config: ConfigsConfig) -> None:
        """List, or copy."""
        print(copied(config) if config.name else listing(shipped_configs.shipped_configs()))


def listing(configs: Mapping[str, Path]) -> str:
    """Name, cost and purpose of each experiment.

    Args:
        configs: Files by name.
    """
    lines: list[str] = []
    for name, file in configs.items():
        cost = shipped_configs.cost(file)
        lines += [f"{name}{f' ({cost})' if cost else ''}", f"    {shipped_configs.summary(file)}"]
    return "\n".join([*lines, "", "next: dit-shd configs digits_shd", "or:   dit-shd train digits_shd"])


def copied(config: ConfigsConfig) -> str:
    """Copy an experiment; what was made, and the command that runs it.

    Args:
        config: Which, and where to.

    Raises:
        UserError: No such experiment, or the file is there already.
    """
    source = shipped_configs.config_file(config.name)
    out = config.out or Path(source.name)
    if out.exists():
        raise UserError(f"{out}: is there already; choose another out=FILE")
    write_text(out, whole(source), "choose another out=FILE")
    summary = shipped_configs.summary(source)
    return f"done: {out}{', ' * bool(summary)}{summary}\nnext: dit-shd train {shlex.quote(str(out))}"


def whole(source: Path) -> str:
    """The text of an experiment; where it has a `base:`, which is not copied, with the keys that it has of it.

    Args:
        source: Its file.
    """
    values, text = read_yaml(source), source.read_text(encoding="utf-8")
    if not values:
        raise UserError(f"{source}: wanted the keys of an experiment, found none")
    if "base" not in parse_yaml(text):
        return text
    head = "".join(takewhile(lambda line: line.startswith("#"), text.splitlines(keepends=True)))
    return head + yaml.safe_dump(values, default_flow_style=None, sort_keys=False, allow_unicode=True, width=100)
