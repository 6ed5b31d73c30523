"""Plug-ins by name: each module of a plug-in folder is a plug-in of the module's name; there is no list to edit.

A name with a dot (`my_package.my_loss.MyLoss`) imports a class of another package, but only of those that the command
line trusts (`--trust my_package`): a config from elsewhere must not import code by itself.
"""

import dataclasses
import difflib
import importlib
import inspect
import os
import pkgutil
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Generic, TypeVar

from dit_shd.core.config import cast, resolve
from dit_shd.core.errors import UserError, shortened, unknown, wrong

Base = TypeVar("Base")
_trusted: set[str] = set()


def trust(package: str) -> None:
    """Let configs name plug-ins of a package with dots, as `--trust PACKAGE` does; naming one runs its code.

    Args:
        package: At the top level, installed or in the working folder: my_package of my_package.my_loss.MyLoss.

    Raises:
        UserError: It is no such name.
    """
    if not (isinstance(package, str) and package.isidentifier()):
        raise UserError(f"trust: wanted the name of a package, as my_package, found {package!r}")
    _trusted.add(package)
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())  # last: no file of the folder takes the place of an installed package


def trusted() -> list[str]:
    """The packages whose code this process may import by name."""
    return sorted(_trusted)


@dataclass(frozen=True)
class Plugin:
    """A plug-in's name and the keyword arguments of its class: `{name: x, key: value, ...}` in YAML."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_value(cls, value: object, where: str) -> "Plugin":
        """From YAML: a name, or {name: ..., key: value}.

        Raises:
            UserError: It is neither.
        """
        if isinstance(value, cls):
            return value
        if isinstance(value, str):
            return cls(value)
        if not isinstance(value, dict) or not isinstance(value.get("name"), str):
            raise wrong(where, "{name: ..., key: value}", value)
        return cls(value["name"], {k: v for k, v in value.items() if k != "name"})

    def as_value(self) -> dict[str, Any]:
        """The name and the options as plain values for YAML."""
        return {"name": self.name, **self.options}


class PluginFolder(Generic[Base]):
    """The plug-ins of one kind: the modules of a package, each with one subclass of `base`.

    Args:
        package: The folder's dotted name.
        base: The class of which each module defines a subclass.
        kind: What errors call these plug-ins.
        synonyms: Other names in lower case -> the plug-in that errors propose for them.
        note_name: Called with what is built by a dotted name, and this name.
    """

    def __init__(
        self,
        package: str,
        base: type[Base],
        kind: str,
        synonyms: Mapping[str, str] = MappingProxyType({}),
        note_name: Callable[[Base, str], object] | None = None,
    ):
        self.package, self.base, self.kind, self.synonyms, self.note_name = package, base, kind, synonyms, note_name

    def names(self) -> list[str]:
        """The plug-ins that ship with dit_shd: the modules of the folder."""
        package = importlib.import_module(self.package)
        return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))

    def find(self, name: str) -> type[Base]:
        """The class of the plug-in called `name`.

        Raises:
            UserError: There is no such module, or a dotted name is of an untrusted package, of another kind or lacks
                what its base class asks for.
        """
        if "." in name and all(part.isidentifier() for part in name.split(".")):
            return self._foreign(name)
        known = self.names()
        if name not in known:
            meant = self.synonyms.get(name.lower())
            near = difflib.get_close_matches(name, known, 1) if meant is None else [meant]
            raise UserError(
                f"{self.kind}: no plug-in called '{shortened(name)}'"
                + (f", did you mean '{near[0]}'?" if near else ".")
                + f" Available: {', '.join(known)}."
            )
        module = importlib.import_module(f"{self.package}.{name}")
        for member in vars(module).values():
            if isinstance(member, type) and issubclass(member, self.base) and member.__module__ == module.__name__:
                return member
        raise AssertionError(f"{module.__name__} defines no subclass of {self.base.__name__}")

    def build(self, plugin: Plugin, where: str = "") -> Base:
        """Construct a plug-in from its options.

        Raises:
            UserError: Naming `where.key`, for an unknown or missing key or a value of another type.
        """
        cls = self.find(plugin.name)
        factory: Callable[..., Base] = getattr(cls, "from_options", cls)
        made = factory(**arguments((factory, cls), plugin.options, where or self.kind))
        if "." in plugin.name and self.note_name is not None:
            self.note_name(made, plugin.name)
        return made

    def filled(self, plugin: Plugin, where: str = "", defaults: Mapping[str, Any] = MappingProxyType({})) -> Plugin:
        """The plug-in with every default written out, so that a saved config does not depend on later defaults.

        Args:
            plugin: As a user gave it.
            where: What errors call it.
            defaults: Values of optional keys in place of the class's defaults; keys that it lacks are passed over.
        """
        cls = self.find(plugin.name)
        factory: Callable[..., Base] = getattr(cls, "from_options", cls)
        given = arguments((factory, cls), plugin.options, where or self.kind)
        parameters = inspect.signature(cls).parameters.values()
        optional = {p.name: defaults.get(p.name, p.default) for p in parameters if p.default is not p.empty}
        return Plugin(plugin.name, {**optional, **given})

    def _foreign(self, name: str) -> type[Base]:
        package = name.partition(".")[0]
        if package not in _trusted:
            raise UserError(
                f"{self.kind}: '{name}' would import code of '{package}'; if you trust it, add --trust {package} to "
                f"the command (in Python first: dit_shd.trust('{package}'))"
            )
        module, _, attribute = name.rpartition(".")
        try:
            member = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise UserError(f"{self.kind}: cannot import '{name}': {error}") from error
        if not (isinstance(member, type) and issubclass(member, self.base)):
            raise UserError(f"{self.kind}: '{name}' is not a subclass of {self.base.__module__}.{self.base.__name__}")
        missing = sorted(getattr(member, "__abstractmethods__", ()))
        if missing:
            raise UserError(f"{self.kind}: '{name}' lacks {', '.join(missing)}, which every {self.base.__name__} has")
        return member


def arguments(functions: Sequence[Callable[..., object]], values: dict[str, Any], where: str) -> dict[str, Any]:
    """Cast values to the annotated types of the parameters of several functions together.

    Raises:
        UserError: Naming `where.key`, for an unknown or missing key or a value of another type.
    """
    by_name: dict[str, inspect.Parameter] = {}
    hints: dict[str, Any] = {}
    for function in functions:
        for p in inspect.signature(function).parameters.values():
            if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL):
                by_name[p.name] = p
        function = function.__init__ if isinstance(function, type) else function
        hints |= typing.get_type_hints(function, include_extras=True)
    result = {}
    for key, value in values.items():
        if key not in by_name:
            raise unknown(where, key, by_name)
        default = by_name[key].default
        if dataclasses.is_dataclass(default) and isinstance(value, dict):  # what is not given stays the default's
            value = resolve(default) | value
        result[key] = cast(hints.get(key, Any), value, f"{where}.{key}")
    for name, parameter in by_name.items():
        if parameter.default is parameter.empty and name not in result:
            raise UserError(f"{where}.{name}: a value is needed and none was given")
    return result
