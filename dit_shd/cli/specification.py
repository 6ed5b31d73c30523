"""A command's arguments and keys, read from its file without importing it."""

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from dit_shd.cli.commands import COMMANDS
from dit_shd.core.config_source import Key, constants, imported_from, keys_of, parse, value_of


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
    plugins: Mapping[str, str]
    synonyms: Mapping[str, str]
    file: tuple[str, str]

    @cached_property
    def keys(self) -> list[Key]:
        """Every key of its config."""
        return keys_of(*self.config)

    @cached_property
    def file_keys(self) -> list[Key]:
        """Every key of the file that its first word names."""
        return keys_of(*self.file) if self.file[0] else []

    @property
    def moved(self) -> Sequence[str]:
        """Keys of earlier versions that its config still takes: MOVED_KEYS in the file of the config."""
        tree = parse(self.config[0])
        tree = parse(imported_from(tree, self.config[1], self.config[0]))
        return constants(tree).get("MOVED_KEYS", ())

    @property
    def summary(self) -> str:
        """The first line of its text."""
        return self.text.partition("\n")[0]

    @property
    def usage(self) -> str:
        """How it is called."""
        return " ".join(["dit-shd", self.name, *self.words.values(), "[key=value ...]"])


def specification(name: str) -> Specification:
    """The specification of the command called `name`; of a dotted name, once its module is imported."""
    module = name.rpartition(".")[0] or f"{COMMANDS.package}.{name}"
    tree = parse(module)
    attributes: dict[str, Any] = {"words": {}, "words_help": "", "places": {}, "plugins": {}, "synonyms": {}}
    attributes["file"] = ("", "")
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
                attributes[key] = value_of(node.value, {})
    text = ast.get_docstring(tree) or ""
    return Specification(name, text, (imported_from(tree, config, module), config), **attributes)


def command_names(first: str = "") -> list[str]:
    """The commands, and the one of another package that the first word of a command line names with dots.

    Args:
        first: The word.

    Raises:
        UserError: That package is not trusted, or has no such command.
    """
    names = COMMANDS.names()
    if "." in first and all(part.isidentifier() for part in first.split(".")):
        COMMANDS.find(first)  # imports its module
        names.append(first)
    return names
