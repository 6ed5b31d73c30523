"""Commands, one file each, called by the file's name: adding a command is one file.

A file's docstring is the text of `--help`; it and the class's attributes are read from the source without importing the
file (cli/specification.py), which may therefore import heavy packages at its top.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, TypeVar

from dit_shd.core.places import Kind
from dit_shd.core.plugins import PluginFolder

Config = TypeVar("Config")


class Command(ABC, Generic[Config]):
    """A command of `dit-shd`. All attributes but `config` are literals, since they are read without being run."""

    config: ClassVar[type]
    """The dataclass of its keys (Config)."""
    words: ClassVar[dict[str, str]] = {}
    """Key -> name in the help of the word that sets it without `key=`: {"run": "RUN"}. A name that ends in ... stands
    for several words, one in brackets may be left out. The key "" is a YAML file of values, which `key=value`
    overrides."""
    words_help: ClassVar[str] = ""
    """The help of these words."""
    places: ClassVar[dict[str, tuple[Kind, str]]] = {}
    """Key -> kind of file that must exist, and its name in errors; checked before anything heavy is imported."""
    plugins: ClassVar[dict[str, str]] = {}
    """Key -> the package of the plug-ins that it names, for help and checks."""
    file: ClassVar[tuple[str, str]] = ("", "")
    """Module and class of what the file of the first word holds, for help."""
    synonyms: ClassVar[dict[str, str]] = {}
    """Words of other programs -> the key that says the same here, or what to do; in lower case with underscores."""

    divides: ClassVar[bool] = False
    """Whether the processes of a launcher share the work; else they would each do all of it."""

    @abstractmethod
    def run(self, config: Config) -> None:
        """Run the command."""


COMMANDS: PluginFolder[Command[Any]] = PluginFolder(__name__, Command, "command")
