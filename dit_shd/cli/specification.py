"""A command's arguments and keys, read from its file without importing it."""

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dit_shd.cli.commands import COMMANDS
from dit_shd.core.config_source import explain_source, imported_from, parse


@dataclass(frozen=True)
class Specification:
    """The description of a command in its file."""

    name: str
    text: str
    """The docstring; its first line is the summary."""
    config: tuple[str, str]
    """Module and class of its config."""
    words: Mapping[str, str]
    """As in Command, as are the next ones."""
    words_help: str
    places: Mapping[str, Any]

    @property
    def keys(self) -> str:
        """Every key with its default and meaning, as text."""
        return explain_source(*self.config)


def specification(name: str) -> Specification:
    """The specification of the command called `name`."""
    module = f"{COMMANDS.package}.{name}"
    tree = parse(module)
    attributes: dict[str, Any] = {"words": {}, "words_help": "", "places": {}}
    config = ""
    for cls in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        if not any(ast.unparse(base).partition("[")[0] == "Command" for base in cls.bases):
            continue
        for node in cls.body:
            if not isinstance(node, (ast.Assign, ast.AnnAssign)) or node.value is None:
                continue
            target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
            key = target.id if isinstance(target, ast.Name) else ""
            if key == "config" and isinstance(node.value, ast.Name):
                config = node.value.id
            elif key in attributes:
                attributes[key] = ast.literal_eval(node.value)
    text = ast.get_docstring(tree) or ""
    return Specification(name, text, (imported_from(tree, config, module), config), **attributes)


def specifications() -> dict[str, Specification]:
    """The specifications of all commands."""
    return {name: specification(name) for name in COMMANDS.names()}
