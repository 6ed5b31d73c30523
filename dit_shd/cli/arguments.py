"""Command-line words as values: key=value and files, and help that imports nothing heavy."""

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dit_shd import __version__
from dit_shd.cli.specification import Specification
from dit_shd.core.errors import UserError
from dit_shd.core.yaml_files import override, read_yaml

ORDER = ("encode", "convert", "train", "sample", "evaluate", "statistics", "compare", "inspect", "demo")
"""The order in which commands are listed; others follow."""


class _Help(argparse.Action):
    """--help of one command: its text, then every key with its default."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, nargs=0, **kwargs)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        keys = parser.get_default("specification").keys
        parser.epilog = f"keys (key=value; dots reach inside, as optimizer.lr=1e-4; values are YAML):\n{keys}"
        parser.print_help()
        parser.exit()


def trusted(words: Sequence[str]) -> list[str]:
    """The packages that a command line trusts, wherever it says so.

    Args:
        words: Of the command line.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--trust", action="append", default=[])
    return parser.parse_known_args(list(words))[0].trust


def parser_of(commands: Mapping[str, Specification]) -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = argparse.ArgumentParser(
        prog="dit-shd",
        description="Distil diffusion transformers: train, sample, evaluate. Start with: dit-shd demo",
    )
    parser.add_argument("--version", action="version", version=f"dit-shd {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in [*(n for n in ORDER if n in commands), *(n for n in commands if n not in ORDER)]:
        _add(subparsers, commands[name])
    return parser


def _add(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]", command: Specification) -> None:
    first = " ".join(command.words.values())
    sub = subparsers.add_parser(
        command.name,
        usage=f"%(prog)s [--trust PACKAGE] {f'{first} ' if first else ''}[key=value ...]",
        help=command.text.partition("\n")[0],
        description=command.text,
        add_help=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sub.add_argument("-h", "--help", action=_Help, help="this text")
    sub.add_argument("--trust", action="append", default=[], metavar="PACKAGE", help="allow plug-ins of PACKAGE")
    if first:
        several = "+" if first.endswith("...") or " " in first else None
        sub.add_argument("first", metavar=first.rstrip("."), nargs=several, help=command.words_help)
    sub.add_argument("assignments", nargs="*", metavar="key=value", help="settings, see below")
    sub.set_defaults(specification=command)


def values_of(options: argparse.Namespace) -> dict[str, Any]:
    """The values of a command's keys, from its words and key=value.

    Raises:
        UserError: Missing or unexpected words, or text that is no YAML.
    """
    words = options.specification.words
    if not words:
        return override({}, options.assignments)
    if isinstance(options.first, str):
        (key,) = words
        values = {key: options.first} if key else read_yaml(Path(options.first))
        return override(values, options.assignments)
    names, assignments = sorted_words([*options.first, *options.assignments])
    if len(words) == 1:
        return override({next(iter(words)): names}, assignments)
    if len(names) != len(words):
        expected = " and ".join(words.values())
        raise UserError(f"wanted {len(words)} names, {expected}, found {len(names)}: {' '.join(names)}")
    return override(dict(zip(words, names)), assignments)


def sorted_words(words: list[str]) -> tuple[list[str], list[str]]:
    """Separate files from key=value, in any order, for a command with several files (./a=b is a file)."""
    assignments = [word for word in words if re.match(r"[A-Za-z_][\w.]*=", word)]
    return [word for word in words if word not in assignments], assignments
