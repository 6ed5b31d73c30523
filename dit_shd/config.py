"""Configs: frozen dataclasses, filled strictly from YAML and `key=value`, saved resolved.

A default lives in the dataclass (or in a plug-in's `__init__`) and nowhere else. An unknown key names the nearest
known one; values are cast by the annotated type, since YAML reads `1e-4` as text.
"""

import copy
import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union

import yaml

from dit_shd import registry
from dit_shd.errors import UserError, describe, one_line, unknown, wrong
from dit_shd.places import PLACE, expanded, instead, written

T = TypeVar("T")


def option(default: Any, doc: str) -> Any:
    """A config field with its help text."""
    if isinstance(default, (list, dict)) or dataclasses.is_dataclass(default):
        return field(default_factory=lambda: default, metadata={"doc": doc})
    return field(default=default, metadata={"doc": doc})


@dataclass(frozen=True)
class Plugin:
    """A named plug-in and the keywords its class is called with: `{name: x, key: value, ...}` in YAML."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)

    def filled(self, kind: str, where: str = "") -> "Plugin":
        """The same with every default written out, so that a saved config does not depend on them."""
        cls = registry.find(kind, self.name)
        given = arguments((cls,), self.options, where or kind)
        parameters = inspect.signature(cls).parameters.values()
        defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
        return Plugin(self.name, {**defaults, **given})

    def build(self, kind: str, where: str = "") -> Any:
        """Call the plug-in's class; unknown keys and wrong types are UserErrors naming `where.key`."""
        cls = registry.find(kind, self.name)
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


def make(cls: type[T], values: Any, where: str = "config") -> T:
    """Fill the dataclass `cls` from a mapping, strictly."""
    if not isinstance(values, dict):
        raise UserError(f"{where}: wanted keys and values, found {describe(values)}")
    hints = typing.get_type_hints(cls, include_extras=True)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise unknown(where, key, fields)
    for name, f in fields.items():
        if name not in values and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise UserError(f"{where}.{name}: a value is needed and none was given")
    return cls(**{key: cast(hints[key], value, f"{where}.{key}") for key, value in values.items()})


def checked(config: T, where: str = "config") -> T:
    """A config that somebody filled by hand, its values cast as `make` does."""
    hints = typing.get_type_hints(type(config), include_extras=True)
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}  # type: ignore[arg-type]
    return type(config)(**{key: cast(hints[key], value, f"{where}.{key}") for key, value in values.items()})


def cast(hint: Any, value: Any, where: str) -> Any:
    """Turn a YAML value into the annotated type, or raise a UserError that says what was wanted and found."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin is Annotated:
        place = PLACE in args[1:] and isinstance(value, (str, Path))
        return expanded(value, where) if place else cast(args[0], value, where)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        options = [a for a in args if a is not type(None)]
        for candidate in options:
            try:
                return cast(candidate, value, where)
            except UserError as error:
                if len(options) == 1 or _meant(candidate, value):
                    raise error
        raise wrong(where, " or ".join(type_name(a) for a in options), value)
    if origin is Literal:
        if value in args:
            return value
        if value is False and "no" in args:  # YAML 1.1 reads a bare `no` as false
            return "no"
        raise wrong(where, " | ".join(str(a) for a in args), value)
    if hint is Plugin:
        return _plugin(value, where)
    if dataclasses.is_dataclass(hint):
        return checked(value, where) if isinstance(value, hint) else make(hint, value, where)  # type: ignore[arg-type]
    if origin in (list, tuple, Sequence):
        if not isinstance(value, (list, tuple)):
            raise wrong(where, "a list", value)
        items = [cast(args[0] if args else Any, v, f"{where}.{i}") for i, v in enumerate(value)]
        return tuple(items) if origin is tuple else items
    if origin is dict or hint is dict:
        if not isinstance(value, dict):
            raise wrong(where, "keys and values", value)
        kinds = args or (Any, Any)
        return {cast(kinds[0], k, where): cast(kinds[1], v, f"{where}.{one_line(str(k))}") for k, v in value.items()}
    return _scalar(hint, value, where)


def _meant(hint: Any, value: Any) -> bool:
    """Whether a value is of the shape that one of several types has: what is wrong is inside of it."""
    if isinstance(value, (str, Path)):
        return typing.get_origin(hint) is Annotated or hint is Path
    return isinstance(value, (dict, list)) and typing.get_origin(hint) is type(value)


def _scalar(hint: Any, value: Any, where: str) -> Any:
    if hint is bool:
        if isinstance(value, bool):
            return value
    elif hint is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        if (number := _number(value)) is not None and number.is_integer():
            return int(number)
    elif hint is float:
        if (number := _number(value)) is not None:
            return number
    elif hint is str:
        if isinstance(value, (str, int, float)) and not isinstance(value, bool):
            return str(value)
    elif hint is Path:
        if isinstance(value, (str, Path)):
            return Path(expanded(value, where))
    elif isinstance(hint, type) and isinstance(value, hint):
        return value
    raise wrong(where, type_name(hint), value)


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if number == number and abs(number) != float("inf") else None


def _plugin(value: Any, where: str) -> Plugin:
    if isinstance(value, Plugin):
        return value
    if isinstance(value, str):
        return Plugin(value)
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        raise wrong(where, "{name: ..., key: value}", value)
    return Plugin(value["name"], {k: v for k, v in value.items() if k != "name"})


def type_name(hint: Any) -> str:
    hint = Path if typing.get_origin(hint) is Annotated else hint
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
    return words.get(hint, getattr(hint, "__name__", str(hint)))


class _Loader(yaml.SafeLoader):
    """Safe YAML without aliases, which can make a small file huge."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not taken")
        return super().compose_node(parent, index)


def parse_yaml(text: str) -> Any:
    """YAML as plain values; yaml.YAMLError whatever is wrong with it."""
    try:
        return yaml.load(text, _Loader)
    except (ValueError, RecursionError) as error:  # impossible dates, endless numbers, bottomless brackets
        raise yaml.YAMLError(str(error)) from error


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file of keys and values, read safely; `base: NAME`, a file beside it, gives the keys it does not give.

    A key is taken whole from one file or the other: lists and plug-ins are never mixed.
    """
    path = Path(expanded(path))
    values, seen = _read_yaml(path), [path.name]
    while "base" in values:
        name = values.pop("base")
        if not isinstance(name, str) or Path(name).name != name or "\\" in name:
            raise wrong(f"{path}: base", "the name of a file in the same folder", name)
        if name in seen:
            raise UserError(f"{path}: base: {' -> '.join([*seen, name])} leads back to itself")
        seen.append(name)
        values = {**_read_yaml(path.with_name(name)), **values}
    return values


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        found = "a folder" if path.is_dir() else f"nothing; {instead(path)}"
        raise UserError(f"{path}: wanted a config file (YAML), found {found}")
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: wanted keys and values, found {describe(values)}")
    return values


def override(values: dict[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Apply `a.b=value` assignments (values are YAML; `losses.0.weight=2` reaches into lists) to a copy."""
    result = copy.deepcopy(values)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            raise UserError(f"'{assignment}': wanted key=value")
        written(text, key)
        try:
            value = parse_yaml(text)
        except yaml.YAMLError as error:
            raise UserError(
                f"'{assignment}': the value is not valid YAML (in quotes, it is text: {key}='\"...\"')"
            ) from error
        *path, last = key.split(".")
        node: Any = result
        for i, part in enumerate(path):
            node = _step(node, part, ".".join(path[: i + 1]))
        if isinstance(node, list):
            node[_position(node, last, key)] = value
        elif isinstance(node, dict):
            node[last] = value
        else:
            raise UserError(f"'{assignment}': '{'.'.join(path)}' holds {describe(node)}, which has no keys")
    return result


def _step(node: Any, part: str, where: str) -> Any:
    if isinstance(node, list):
        return node[_position(node, part, where)]
    if isinstance(node, dict):
        child = node.setdefault(part, {})
        if isinstance(child, str):  # `data: digits` is short for `data: {name: digits}`
            child = node[part] = {"name": child}
        return child
    raise UserError(f"{where}: {describe(node)} has no keys")


def _position(node: list, part: str, where: str) -> int:
    if not part.isdecimal() or int(part) >= len(node):
        raise UserError(f"{where}: wanted a position from 0 to {len(node) - 1} in the list, found '{part}'")
    return int(part)


def resolve(value: Any) -> Any:
    """The plain YAML form of a config, every default written out; `make(cls, resolve(c)) == c`."""
    if isinstance(value, Plugin):
        return {"name": value.name, **resolve(value.options)}
    if dataclasses.is_dataclass(value):
        return {f.name: resolve(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {k: resolve(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [resolve(v) for v in value]
    return str(value) if isinstance(value, Path) else value


def dump(value: Any) -> str:
    """The resolved config as YAML text."""
    return yaml.safe_dump(resolve(value), sort_keys=False, allow_unicode=True)


def explain(cls: type, indent: str = "  ") -> str:
    """One line for each key of a config dataclass: its type, default and meaning, for `--help`."""
    lines = []
    for f in dataclasses.fields(cls):  # type: ignore[arg-type]
        default = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
        if dataclasses.is_dataclass(default):
            lines.append(f"{indent}{f.name}:  {f.metadata.get('doc', '')}")
            lines.append(explain(type(default), indent + "  "))
            continue
        given = default is not dataclasses.MISSING
        shown = yaml.safe_dump(resolve(default), default_flow_style=True).splitlines()[0] if given else "needed"
        lines.append(f"{indent}{f.name}={shown}  {f.metadata.get('doc', '')}".rstrip())
    return "\n".join(lines)
