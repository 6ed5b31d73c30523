"""Paths of a config that lies outside of the folder one is in, from which relative paths count."""

import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dit_shd.cli.arguments import Line
from dit_shd.cli.specification import Specification
from dit_shd.core.errors import UserError
from dit_shd.core.places import WANTED, instead
from dit_shd.core.shipped_configs import config_file, find_shipped, shipped_folder

OF_PLUGINS = "path"
"""The key by which a plug-in is given a file or folder."""


def check_places(values: Mapping[str, Any], line: Line, command: Specification) -> None:
    """Refuse a config of another folder whose files are not found from here, and say from where they are.

    Experiments that ship with dit_shd are meant to be begun anywhere.

    Args:
        values: Of the command's keys.
        line: The command line, whose own paths count from here.
        command: That takes them.

    Raises:
        UserError: A file that the command needs is not there.
    """
    if "" not in command.words or len(line.names) != 1:
        return
    folder = config_file(line.names[0]).resolve().parent
    if folder.is_relative_to(shipped_folder().resolve()):
        _check_made(values, command)
        return
    if folder.is_relative_to(Path.cwd()):
        return
    paths = {key: text for key, text in _paths(values, command) if not _is_assigned(key, line) and _is_missing(text)}
    for base in (folder, *folder.parents):
        there = {key: os.path.relpath(base / text) for key, text in paths.items() if (base / text).exists()}
        if there:
            names = " and ".join(f"{key} '{paths[key]}'" for key in there)
            words = shlex.join(f"{key}={path}" for key, path in there.items())
            raise UserError(
                f"{line.names[0]}: {names} of it {'are' if len(there) > 1 else 'is'} not here, but in "
                f"'{os.path.relpath(base)}'; relative paths count from the folder you are in: go there, or add {words}"
            )
    for key, text in paths.items():
        if (option := key.partition(".")[0]) in command.places:
            words = " ".join(f"{key}=PATH" for key in paths)
            raise UserError(
                f"{key}: wanted {WANTED[command.places[option][0]]}, found nothing at '{text}' "
                f"({instead(Path(text))}); relative paths count from the folder you are in, and not from that of "
                f"{line.names[0]}: go to where it was begun, or add {words}"
            )


def _check_made(values: Mapping[str, Any], command: Specification) -> None:
    """Refuse a shipped experiment whose teacher is made by another one, and is not there yet; a dry run can do without.

    Raises:
        UserError: Naming the command that makes it.
    """
    for key, text in _paths(values, command) if not values.get("dry_run") else ():
        maker = Path(text).name
        if key.partition(".")[0] == "teacher" and _is_missing(text) and find_shipped(maker) is not None:
            raise UserError(f"{key}: '{text}' is not here yet; make it first: dit-shd train {maker}")


def _paths(values: Mapping[str, Any], command: Specification) -> Iterator[tuple[str, str]]:
    """The keys whose values are files or folders that must be there, with the values."""
    for key in (*command.places, *command.plugins):
        given = values.get(key)
        if isinstance(given, str) and key in command.places:
            yield key, given
        elif isinstance(given, Mapping) and "." not in str(given.get("name")):  # not what a class of a user's reads
            names = [OF_PLUGINS] if key in command.plugins else given
            yield from ((f"{key}.{name}", given[name]) for name in names if isinstance(given.get(name), str))


def _is_missing(text: str) -> bool:
    """Whether a value is a relative path, and nothing is there."""
    named = text.startswith(("hub:", "asset:", "~"))
    return bool(text) and not named and not os.path.isabs(text) and not os.path.exists(text)


def _is_assigned(key: str, line: Line) -> bool:
    given = [word.partition("=")[0] for word in line.assignments]
    return any(key == name or key.startswith(f"{name}.") for name in given)
