"""Commands, one file each, called by the file's name: adding a command is one file.

A file's docstring is what `--help` says; it and the class's attributes are read from the source without importing the
file (cli/specification.py), which may therefore import whatever it needs at its top.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, TypeVar

from dit_shd.core.places import Kind
from dit_shd.core.plugins import PluginFolder

Config = TypeVar("Config")


class Command(ABC, Generic[Config]):
    """A command of `dit-shd`. All attributes but `config` are written out, since they are read without being run."""

    config: ClassVar[type]
    """Config: the dataclass of its keys."""
    words: ClassVar[dict[str, str]] = {}
    """Key -> what the word that gives it without `key=` is called in the help: {"run": "RUN"}. A name that ends in ...
    takes several words. The key "" is a YAML file that gives the values which `key=value` overrides."""
    words_help: ClassVar[str] = ""
    places: ClassVar[dict[str, tuple[Kind, str]]] = {}
    """Key -> what is wanted there and what errors call it: said at once, before anything heavy is imported."""

    @abstractmethod
    def run(self, config: Config) -> None:
        """Do it."""


COMMANDS: PluginFolder[Command[Any]] = PluginFolder(__name__, Command, "command")
