"""Configs: frozen dataclasses, filled strictly from YAML and `key=value`, saved resolved.

A default lives in the dataclass (or in a plug-in's `__init__`) and nowhere else. The error for an unknown key names
the nearest known one; values are cast to the annotated type, since YAML reads `1e-4` as text.
"""

import dataclasses
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeVar, Union, runtime_checkable

from dit_shd.core.errors import UserError, describe, one_line, unknown, wrong
from dit_shd.core.places import PLACE, expanded

T = TypeVar("T")
REQUIRED: Any = dataclasses.MISSING
"""The default of an option that has none: a value must be given."""

LARGE = 1e6
"""Largest numbers from here on only keep nonsense out; help does not name them."""


def option(
    default: T, doc: str, range: tuple[float, float] | None = None, resumable: bool = False, heading: str = ""
) -> T:
    """A config field.

    Args:
        default: Its value where none is given; REQUIRED for none.
        doc: Its help text.
        range: Smallest and largest number; None as a value is always allowed.
        resumable: Whether a resumed run may change it.
        heading: The heading of it and the fields after it, in help.
    """
    metadata = {"doc": doc, "range": range, "resumable": resumable, "heading": heading}
    if isinstance(default, (list, dict)) or dataclasses.is_dataclass(default):
        return field(default_factory=lambda: deepcopy(default), metadata=metadata)  # of each config its own
    return field(default=default, metadata=metadata)


def resumable_keys(cls: type) -> tuple[str, ...]:
    """The keys of a config dataclass that a resumed run may change."""
    return tuple(f.name for f in dataclasses.fields(cls) if f.metadata.get("resumable"))


def check_ranges(config: object, where: str = "") -> None:
    """Check that every number of a config is in its range.

    Args:
        config: The dataclass, however it was made.
        where: Prefix of the keys in errors.

    Raises:
        UserError: Naming the key, the range and the value.
    """
    for f in dataclasses.fields(config):  # type: ignore[arg-type]
        value, name = getattr(config, f.name), f"{where}{f.name}"
        if dataclasses.is_dataclass(value):
            check_ranges(value, f"{name}.")
        if f.metadata.get("range") is None:
            continue
        low, high = f.metadata["range"]
        for number in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(number, (int, float)) and not low <= number <= high:
                least = number < low and high >= LARGE
                wanted = f"{low} or more" if least else f"a number from {low} to {high:g}"
                raise UserError(f"{name}: wanted {wanted}, found {number}")


def make(cls: type[T], values: object, where: str = "config") -> T:
    """Fill the dataclass `cls` from a mapping, strictly.

    Raises:
        UserError: An unknown or missing key, or a value of another type.
    """
    if not isinstance(values, dict):
        raise UserError(f"{where}: wanted keys and values, found {describe(values)}")
    migrated: Callable[[dict[str, Any]], dict[str, Any]] = getattr(cls, "migrated", dict)  # keys that have moved
    values = migrated(values)
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
    """A config that was constructed directly, its values cast as `make` casts them."""
    hints = typing.get_type_hints(type(config), include_extras=True)
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}  # type: ignore[arg-type]
    return type(config)(**{key: cast(hints[key], value, f"{where}.{key}") for key, value in values.items()})


def cast(hint: Any, value: object, where: str) -> Any:
    """Turn a YAML value into the annotated type.

    Args:
        hint: The annotation.
        value: As YAML gives it.
        where: The key, for the error.

    Raises:
        UserError: What was wanted and found.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    value = plain_number(value)
    if origin is Annotated:
        if PLACE in args[1:] and isinstance(value, (str, Path)):
            return expanded(value, where)
        return cast(args[0], value, where)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        options = [a for a in args if a is not type(None)]
        for candidate in options:
            try:
                return cast(candidate, value, where)
            except UserError as error:
                if len(options) == 1 or _has_outer_type(candidate, value):
                    raise error
        raise wrong(where, " or ".join(type_name(a) for a in options), value)
    if origin is Literal:
        if value in args:
            return value
        if value is False and "no" in args:  # YAML 1.1 reads a bare `no` as false
            return "no"
        raise wrong(where, type_name(hint), value)
    if hasattr(hint, "from_value"):
        return hint.from_value(value, where)
    if dataclasses.is_dataclass(hint):
        return checked(value, where) if isinstance(value, hint) else make(hint, value, where)  # type: ignore[arg-type]
    if origin in (list, tuple, Sequence):
        if isinstance(value, str) and "," in value and args and args[0] in (int, float):
            value = value.split(",")  # 3,3,7 is a list of numbers on the command line, as [3,3,7] is
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


def _has_outer_type(hint: Any, value: object) -> bool:
    """Whether a value is a list, mapping or path as one of several types is: the error is then inside of it."""
    if isinstance(value, (str, Path)):
        return typing.get_origin(hint) is Annotated or hint is Path
    return isinstance(value, (dict, list)) and typing.get_origin(hint) is type(value)


def _scalar(hint: Any, value: object, where: str) -> object:
    if hint is bool:
        if isinstance(value, bool):
            return value
    elif hint is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
        if isinstance(value, str) and value.strip().isdecimal():
            return int(value)  # all of its digits, of which a float has sixteen
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


def plain_number(value: Any) -> Any:
    """Python's own number for one of NumPy or PyTorch; anything else as it is."""
    return value.item() if hasattr(value, "dtype") and getattr(value, "shape", None) == () else value


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if number == number and abs(number) != float("inf") else None


def type_name(hint: Any) -> str:
    """What errors call an annotation."""
    origin = typing.get_origin(hint)
    if origin is Literal:
        return " | ".join(map(str, typing.get_args(hint)))
    hint = Path if origin is Annotated else hint
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}
    return words.get(hint, getattr(hint, "__name__", str(hint)))


@runtime_checkable
class _HasValue(Protocol):
    """Part of a config that is a value in YAML; its class has `from_value` for `cast`."""

    def as_value(self) -> object: ...


def changed(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those plain values of a config dataclass's keys that are not its defaults."""
    defaults = {
        f.name: resolve(f.default if f.default_factory is dataclasses.MISSING else f.default_factory())
        for f in dataclasses.fields(cls)
    }
    return {key: value for key, value in values.items() if key in defaults and value != defaults[key]}


def resolve(value: object) -> Any:
    """Plain values of a config for YAML, every default written out; `make` reads them as the same config."""
    if isinstance(value, _HasValue):
        return resolve(value.as_value())
    if dataclasses.is_dataclass(value):
        return {f.name: resolve(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {k: resolve(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [resolve(v) for v in value]
    return str(value) if isinstance(value, Path) else value
