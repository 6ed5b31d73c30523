"""Plug-ins by name: a file of a plug-in folder is the plug-in called like the file, and there is no list to edit.

A name with a dot (`my_package.my_loss.MyLoss`) imports somebody's own class, but only from packages that the
command line trusts (`--trust my_package`): configs come from strangers and must not import code by themselves.
"""

import difflib
import importlib.util
import inspect
import pkgutil
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from dit_shd.core.config import cast
from dit_shd.core.errors import UserError, unknown, wrong


@dataclass(frozen=True)
class Plugin:
    """A named plug-in and the keywords its class is called with: `{name: x, key: value, ...}` in YAML."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_value(cls, value: Any, where: str) -> "Plugin":
        """From YAML: a name, or {name: ..., key: value}."""
        if isinstance(value, cls):
            return value
        if isinstance(value, str):
            return cls(value)
        if not isinstance(value, dict) or not isinstance(value.get("name"), str):
            raise wrong(where, "{name: ..., key: value}", value)
        return cls(value["name"], {k: v for k, v in value.items() if k != "name"})

    def as_value(self) -> dict[str, Any]:
        """The plain form, as in YAML."""
        return {"name": self.name, **self.options}

    def filled(self, kind: str, where: str = "") -> "Plugin":
        """The same with every default written out, so that a saved config does not depend on them."""
        cls = find(kind, self.name)
        given = arguments((cls,), self.options, where or kind)
        parameters = inspect.signature(cls).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        return Plugin(self.name, {**defaults, **given})

    def build(self, kind: str, where: str = "") -> Any:
        """Call the plug-in's class; unknown keys and wrong types are UserErrors naming `where.key`."""
        cls = find(kind, self.name)
        factory: Callable = getattr(cls, "from_options", cls)
        return factory(**arguments((factory, cls), self.options, where or kind))


def arguments(functions: Sequence[Callable], values: dict[str, Any], where: str) -> dict[str, Any]:
    """Check `values` against the signatures of `functions` together and cast them to the annotated types."""
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
        result[key] = cast(hints.get(key, Any), value, f"{where}.{key}")
    for name, parameter in by_name.items():
        if parameter.default is parameter.empty and name not in result:
            raise UserError(f"{where}.{name}: a value is needed and none was given")
    return result


KINDS = {
    "losses": ("dit_shd.distillation.losses", "dit_shd.distillation.losses.Loss"),
    "data": ("dit_shd.data.datasets", "dit_shd.data.datasets.Dataset"),
    "models": ("dit_shd" + ".models.families", "diffusers.ModelMixin"),
    "features": ("dit_shd.evaluation.features", "dit_shd.evaluation.features.FeatureNetwork"),
    "metrics": ("dit_shd.evaluation.metrics", "dit_shd.evaluation.metrics.Metric"),
}
_trusted: set[str] = set()


def trust(package: str) -> None:
    """Allow dotted plug-in names below the top-level `package` in this process."""
    _trusted.add(package)


def names(kind: str) -> list[str]:
    """The plug-ins that ship with dit_shd, by looking into the folder."""
    package = importlib.import_module(KINDS[kind][0])
    return sorted(m.name for m in pkgutil.iter_modules(package.__path__) if not m.name.startswith("_"))


def find(kind: str, name: str) -> type:
    """The class called `name` among the plug-ins of `kind`.

    Raises:
        UserError: no such file, a dotted name of an untrusted package, or a module without a class of that kind.
    """
    if "." in name:
        return _foreign(kind, name)
    known = names(kind)
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        raise UserError(
            f"{kind}: no plug-in called '{name}'"
            + (f", did you mean '{near[0]}'?" if near else "")
            + f" Available: {', '.join(known)}."
        )
    module = importlib.import_module(f"{KINDS[kind][0]}.{name}")
    base = _base(kind)
    for member in vars(module).values():
        if isinstance(member, type) and issubclass(member, base) and member.__module__ == module.__name__:
            return member
    raise AssertionError(f"{module.__name__} defines no subclass of {KINDS[kind][1]}")


def _foreign(kind: str, name: str) -> type:
    package = name.split(".")[0]
    if package not in _trusted:
        raise UserError(
            f"{kind}: '{name}' would import code of '{package}'; if you trust it, add --trust {package} to the command"
        )
    module, _, attribute = name.rpartition(".")
    try:
        member = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{kind}: cannot import '{name}': {error}") from error
    if not (isinstance(member, type) and issubclass(member, _base(kind))):
        raise UserError(f"{kind}: '{name}' is not a subclass of {KINDS[kind][1]}")
    return member


def _base(kind: str) -> type:
    module, _, attribute = KINDS[kind][1].rpartition(".")
    return getattr(importlib.import_module(module), attribute)
