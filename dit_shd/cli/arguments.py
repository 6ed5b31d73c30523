"""Command-line words as values: names, key=value and files, checked by source before anything heavy is imported."""

import difflib
import logging
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import yaml

from dit_shd.cli import foreign_words
from dit_shd.cli.specification import Specification, command_names
from dit_shd.core.config_source import WORDS
from dit_shd.core.errors import UserError, unknown
from dit_shd.core.places import check_utf8
from dit_shd.core.plugin_source import plugin_names, plugin_source, plugin_synonyms
from dit_shd.core.shipped_configs import read_config
from dit_shd.core.yaml_files import as_json, override, parse_yaml, replaced, words_of

FORMS = ("{0}", "[{0}, ...]", "{0} | [{0}, ...]", "{0} | {{text: {0}}}")
TEXTS = [form.format(WORDS[kind]) for form in FORMS for kind in ("str", "Path", "Place")]
"""Kinds of keys whose values are text."""
ASSIGNMENT = re.compile(r"[A-Za-z_][\w.]*=")
_log = logging.getLogger("dit_shd")


@dataclass
class Line:
    """The words of a command line by what they are."""

    command: str = ""
    words: list[str] = field(default_factory=list)
    """Names and assignments, in order."""
    names: list[str] = field(default_factory=list)
    assignments: list[str] = field(default_factory=list)
    flags: list[tuple[str, str]] = field(default_factory=list)
    """Words that begin with a dash and are no options of dit-shd, each with the word after it."""
    trusted: list[str] = field(default_factory=list)
    help: str | None = None
    """The word after --help, which may be empty; None where help is not wanted."""
    version: bool = False


def split(words: Sequence[str]) -> Line:
    """Sort the words of a command line: options may stand anywhere, and so may key=value.

    Args:
        words: Without the name of the program.

    Raises:
        UserError: --trust without a package.
    """
    line, rest = Line(), list(words)
    while rest:
        word = rest.pop(0)
        option, equals, value = word.partition("=")
        if option == "--trust":
            if not equals and not rest:
                raise UserError("--trust: wanted the name of a package after it, found nothing")
            line.trusted.append(value if equals else rest.pop(0))
        elif word in ("-h", "--help"):
            topic = bool(line.command and rest and not ASSIGNMENT.match(rest[0]) and not rest[0].startswith("-"))
            line.help = rest.pop(0) if topic else ""
        elif word == "--version" and not line.command:
            line.version = True
        elif word.startswith("-"):
            after = rest[0] if rest and not rest[0].startswith("-") and rest[0] not in command_names() else ""
            line.flags.append((option, value if equals else after))
            if after and not equals and not line.command:
                rest.pop(0)  # its value is no command
        elif not line.command:
            line.command = word
        else:
            line.words.append(word)
            (line.assignments if ASSIGNMENT.match(word) else line.names).append(word)
    return line


def values_of(line: Line, command: Specification) -> dict[str, Any]:
    """The values of a command's keys, from its words and key=value, of which the last of a key counts.

    Raises:
        UserError: Flags, missing or unexpected words, text that is no YAML, or keys that the command does not have.
    """
    if line.flags:
        raise foreign_words.flag(line.flags[0], command)
    line = _with_paths(line, command)
    keys = [word.partition("=")[0] for word in line.assignments]
    for key in dict.fromkeys(keys):
        words = [word for word in line.assignments if word.startswith(f"{key}=")]
        if len(words) > 1:  # as in a script that ends in "$@"
            _log.warning("%s: given %d times; %s is taken", key, len(words), words[-1])
    for key, outer in replaced(keys):
        _log.warning("%s: given before %s=, which replaces it; put it after that, or into its value", key, outer)
    values = _named(line, command)
    where = "config" if "" in command.words else command.name
    for word in line.assignments:
        key, _, text = word.partition("=")
        if not text.strip():  # key=$VARIABLE, where there is no such variable
            raise UserError(
                f"{key}=: wanted a value after it, found nothing; none is {key}=null, an empty text {key}=\"''\""
            )
        values = override(values, [_as_text(word, _kind(key, values, command))])
    _check_keys(values, command, where, keys)
    return values


def _with_paths(line: Line, command: Specification) -> Line:
    """Words that look like an assignment, to no key of the command, and are a file or folder (lr=1e-3) are names."""
    keys = {key.name.partition(".")[0] for key in command.keys} | set(command.moved)
    paths = [x for x in line.assignments if re.split("[.=]", x)[0] not in keys and os.path.lexists(x)]
    names = [word for word in line.words if word in line.names or word in paths]
    return replace(line, names=names, assignments=[word for word in line.assignments if word not in paths])


def _kind(key: str, values: Mapping[str, Any], command: Specification) -> str:
    """What a key takes, null apart, also one of a plug-in: data.path, losses.0.layers; empty where that is not known.

    Args:
        key: With what it is inside of.
        values: Those that are known so far, which name the plug-ins.
        command: Whose key it is.
    """
    kinds = {known.name: known for known in command.keys}
    path = key.split(".")[:-1]
    if key not in kinds and path and path[0] in command.plugins:
        node: Any = values.get(path[0], parse_yaml(kinds[path[0]].default))
        for part in path[1:]:
            node = node[int(part)] if isinstance(node, list) and part.isdecimal() and int(part) < len(node) else None
        package, name = command.plugins[path[0]], node.get("name") if isinstance(node, Mapping) else node
        if name in plugin_names(package):
            kinds = {f"{'.'.join(path)}.{known.name}": known for known in plugin_source(package, name).keys}
    return kinds[key].kind.removesuffix(" | null") if key in kinds else ""


def _as_text(assignment: str, kind: str) -> str:
    """An assignment to a key of text or of paths, whatever YAML would read: `two: four`, 2024_01_01, 1e3 and yes.

    Args:
        assignment: The word.
        kind: Of its key; others are left as they are.
    """
    if kind not in TEXTS:
        return assignment
    key, _, text = assignment.partition("=")
    check_utf8(text, key)
    try:
        value = parse_yaml(text)
        if (isinstance(value, list) and "[" in kind) or (isinstance(value, dict) and "{" in kind and text[0] == "{"):
            texts = yaml.load(text, yaml.BaseLoader)  # to which every scalar is text
            return f"{key}={as_json(texts)}"
        quoted = isinstance(value, str) and text.lstrip()[:1] in ("'", '"')  # else a # would begin a comment
        none = value is None and text.strip().lower() in ("null", "~")
        plain = none or quoted or isinstance(value, list) or text.startswith("{")
    except yaml.YAMLError:
        plain = False
    return assignment if plain else f"{key}={as_json(text)}"


def _named(line: Line, command: Specification) -> dict[str, Any]:
    """The values that the words without key= set; a key that is given as key=value needs no word."""
    names, given = line.names, {word.partition("=")[0] for word in line.assignments}
    words = [(key, name) for key, name in command.words.items() if key not in given]
    optional = bool(words) and words[0][1].startswith("[")
    several = len(words) == 1 and words[0][1].endswith("...")
    if several and names:
        return {words[0][0]: list(names)}
    if not names and (optional or not words):
        return {}
    if len(names) < len(words):
        expected = " and ".join(name for _, name in words)
        example = f"dit-shd {command.name} {' '.join(name for _, name in words)}"
        raise UserError(
            f"wanted {expected} ({command.words_help}), found {' '.join(names) or 'nothing'}; "
            f"usage: {example} [key=value ...], explained by dit-shd {command.name} --help"
        )
    if len(names) > len(words) > 1:
        expected = " and ".join(name for _, name in words)
        raise UserError(f"wanted {len(words)} names, {expected}, found {len(names)}: {' '.join(names)}")
    if len(names) > len(words):
        raise UserError(f"'{names[len(words)]}': wanted key=value")
    if words and words[0][0] == "":
        return read_config(names[0])
    return {key: name for (key, _), name in zip(words, names)}


def _check_keys(values: Mapping[str, Any], command: Specification, where: str, assigned: Sequence[str]) -> None:
    """Refuse unknown keys, also of the plug-ins that ship with dit_shd, before anything heavy is imported.

    Args:
        values: By key.
        command: That takes them.
        where: What errors call them.
        assigned: The keys that the command line gives, with what they are inside of.
    """
    moved = command.moved
    groups = {"": values, **{k.name: values.get(k.name) for k in command.keys if k.nested and not k.depth}}
    for group, given in groups.items():
        prefix = f"{group}." if group else ""
        known = [key.name.removeprefix(prefix) for key in command.keys if key.name.startswith(prefix)]
        known = [name for name in known if "." not in name]
        for key in given if isinstance(given, Mapping) else ():
            if key not in known and not (group == "" and key in moved):
                advice = foreign_words.advice(str(key), command) if group == "" else None
                raise advice or unknown(f"{where}{'.' * bool(group)}{group}", str(key), known)
    for key in command.keys:
        if key.default == "needed" and not key.depth and key.name not in values:
            raise UserError(f"{where}.{key.name}: a value is needed and none was given")
    defaults = {key.name: key.default for key in command.keys}
    for key, package in command.plugins.items():
        value = values.get(key)
        if isinstance(value, Mapping) and "like" in value and "name" not in value:
            continue  # student: {like: teacher}, whose keys are those of the teacher's config
        if isinstance(value, Mapping) and "name" not in value:  # task.mask_ratio=0.2 is of the default task
            default = parse_yaml(defaults[key])
            value = {**default, **value} if isinstance(default, Mapping) else value  # else refused when it is cast
        if isinstance(value, list):
            for i, item in enumerate(value):
                _check_plugin(item, package, f"{key}.{i}", assigned)
        else:
            _check_plugin(value, package, key, assigned)


def _check_plugin(value: object, package: str, where: str, assigned: Sequence[str]) -> None:
    """Refuse a plug-in that does not exist, or a key that it does not have."""
    name = value.get("name") if isinstance(value, Mapping) else value
    if not isinstance(name, str) or "." in name:
        return  # somebody's own, or refused when it is cast
    names = plugin_names(package)
    if name not in names:
        meant = plugin_synonyms(package).get(name.lower())
        spelt = _spelt(name, names) if meant is None else f"'{name}', did you mean '{meant}'?"
        raise UserError(f"{where}: no plug-in called {spelt} Available: {', '.join(names)}")
    source = plugin_source(package, name)
    known = [key.name for key in source.keys]
    options: Mapping[Any, Any] = value if isinstance(value, Mapping) else {}
    for key in options:
        if key == "like" and key not in known:  # of a command line, over a config with a student by name
            advice = f"to replace it, write {where}='{{like: {options[key]}}}'"
            raise UserError(f"{where}.like: stands beside {where}.name={name}, which has no such key; {advice}")
        if key != "name" and key not in known and not source.open:
            raise _of_another(options, str(key), package, where, assigned) or unknown(where, str(key), known)


def _of_another(
    options: Mapping[Any, Any], key: str, package: str, where: str, assigned: Sequence[str]
) -> UserError | None:
    """The error where the command line changes a part of a config's plug-in, and the rest is of another plug-in.

    Args:
        options: Of the plug-in, with its name.
        key: That it does not have.
        package: Of the plug-ins.
        where: The key that names it.
        assigned: The keys that the command line gives.
    """
    name, here = options["name"], {k: v for k, v in options.items() if f"{where}.{k}" in assigned}
    if where in assigned or not here:
        return None
    if "name" in here and key not in here:
        change = f"{where}: '{key}' is the config's, and {name} has no such key"
    else:
        known = {other: [k.name for k in plugin_source(package, other).keys] for other in plugin_names(package)}
        others = [other for other, keys in known.items() if key in keys]
        if key not in here or "name" in here or not others or difflib.get_close_matches(key, known[name], 1, 0.45):
            return None
        keys = ", ".join(known[name]) or "none"
        change = (
            f"{where}: {name} of the config has no key '{key}' (its keys: {keys}); it is one of {', '.join(others)}"
        )
        name = others[0] if len(others) == 1 else "NAME"
    whole = words_of({where: {"name": name, **{k: v for k, v in here.items() if k != "name"}}})[0]
    return UserError(f"{change}; to name another give it whole: {shlex.quote(whole)}")


def similar_commands(text: str, names: Sequence[str]) -> UserError:
    """The error for a word that is no command."""
    return UserError(f"no command called {_spelt(text, names)} Commands: {', '.join(names)}.")


def _spelt(text: str, names: Sequence[str]) -> str:
    """A word that is none of some names, with the one that may have been meant."""
    near = difflib.get_close_matches(text, names, 1, 0.5)
    return f"'{text}', did you mean '{near[0]}'?" if near else f"'{text}'."
