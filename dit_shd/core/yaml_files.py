"""Configs as YAML: safe reading, `base:`, key=value overrides, and the text that is saved."""

import copy
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

import yaml

from dit_shd.core.config import resolve
from dit_shd.core.errors import UserError, describe, wrong
from dit_shd.core.places import check_utf8, expanded, instead


class _Loader(yaml.SafeLoader):
    """Safe YAML without aliases, which can make a small file huge, and without a key that stands twice in a mapping."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        result = super().construct_mapping(node, deep)
        if len(result) < len(node.value):
            keys = [self.construct_object(key, deep=True) for key, _ in node.value]
            twice = next(key for i, key in enumerate(keys) if key in keys[:i])
            raise yaml.YAMLError(f"the key {twice!r} stands twice")
        return result


_INT = "tag:yaml.org,2002:int"
_Loader.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if pair[0] != _INT]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_INT, re.compile(r"[-+]?(0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)$"), list("-+0123456789"))
"""Whole numbers, without YAML 1.1's octal (010 is 8) and sexagesimal ones (1:30 is 90)."""


def parse_yaml(text: str) -> Any:
    """YAML as plain values.

    Raises:
        yaml.YAMLError: Whatever is wrong with it.
    """
    try:
        return yaml.load(text, _Loader)
    except RecursionError as error:
        raise yaml.YAMLError("brackets are nested too deeply") from error
    except ValueError as error:  # impossible dates, endless numbers
        raise yaml.YAMLError(str(error)) from error


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file of keys and values; `base: NAME`, a file beside it, has the keys that it lacks.

    The value of a key is of one file or the other: lists and plug-ins are never merged.

    Raises:
        UserError: No such file, or not valid YAML.
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
        base = path.with_name(name)
        if not base.is_file():
            raise UserError(f"{path}: base: wanted a config file (YAML), found no {base}; {instead(base)}")
        values = {**_read_yaml(base), **values}
    return values


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        actual = "a folder" if path.is_dir() else f"nothing; {instead(path)}"
        raise UserError(f"{path}: wanted a config file (YAML), found {actual}")
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        words = (
            " ".join(str(error).split())
            .replace(' in "<unicode string>",', " in")
            .replace(' in "<byte string>",', " in")
        )
        raise UserError(f"{path}: not valid YAML: {words}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: wanted keys and values, found {describe(values)}")
    return values


def override(values: dict[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """A copy of `values` with `a.b=value` assignments applied; values are YAML, `losses.0.weight=2` indexes a list.

    Raises:
        UserError: No assignment, not valid YAML, or a key of something that has none.
    """
    result = copy.deepcopy(values)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            raise UserError(f"'{assignment}': wanted key=value")
        check_utf8(text, key)
        try:
            value = parse_yaml(text)
        except yaml.YAMLError as error:
            reason = f": {error}" if type(error) is yaml.YAMLError else ""  # of this file, in one line
            raise UserError(
                f"'{assignment}': the value is not valid YAML{reason} (in quotes, it is text: {key}='\"...\"')"
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


def replaced(keys: Sequence[str]) -> list[tuple[str, str]]:
    """Assigned keys of which nothing is left, each with the key that it is inside of and that is assigned after it.

    Args:
        keys: In the order in which they are assigned, of which the last of a key counts.
    """
    last = {key: place for place, key in enumerate(keys)}
    return [(key, outer) for key in last for outer in last if key.startswith(f"{outer}.") and last[key] < last[outer]]


def _step(node: Any, part: str, where: str) -> Any:
    if isinstance(node, list):
        return node[_position(node, part, where)]
    if isinstance(node, dict):
        child = node.setdefault(part, {})
        if isinstance(child, str):  # `data: digits` is short for `data: {name: digits}`
            child = node[part] = {"name": child}
        return child
    raise UserError(f"{where}: {describe(node)} has no keys")


def _position(node: list[Any], part: str, where: str) -> int:
    if not part.isdecimal() or int(part) >= len(node):
        raise UserError(f"{where}: wanted a position from 0 to {len(node) - 1} in the list, found '{part}'")
    return int(part)


def dump(value: object) -> str:
    """A resolved config as YAML text."""
    return yaml.safe_dump(resolve(value), sort_keys=False, allow_unicode=True)


def as_json(value: object) -> str:
    """A value in one line of JSON that YAML reads as the same: of characters beyond U+FFFF JSON makes two, YAML one."""
    return _PAIR.sub(_one_character, json.dumps(value))


_PAIR = re.compile(r"\\\\|\\u(d[89ab]..)\\u(d[c-f]..)")
"""A backslash, or the two halves of a character in UTF-16."""


def _one_character(match: "re.Match[str]") -> str:
    high, low = match.groups()
    if high is None:
        return match[0]
    return f"\\U{0x10000 + ((int(high, 16) - 0xD800) << 10) + int(low, 16) - 0xDC00:08x}"


def words_of(values: Mapping[str, object]) -> list[str]:
    """Keys and values for the command line: plain text if YAML reads the same value from it, of plug-ins the name."""
    return [f"{key}={_text(value['name'] if _is_name(value) else value)}" for key, value in values.items()]


def _is_name(value: object) -> TypeGuard[dict[str, Any]]:
    """Whether a value is a plug-in without options."""
    return isinstance(value, dict) and [*value] == ["name"]


def _text(value: object) -> str:
    """A value in one line of YAML."""
    flow = yaml.safe_dump(value, default_flow_style=True, width=2**20, sort_keys=False, allow_unicode=True)
    text = value if isinstance(value, str) else flow.removesuffix("...\n").strip()
    try:
        return text if "\n" not in text and parse_yaml(text) == value else as_json(value)
    except yaml.YAMLError:
        return as_json(value)
