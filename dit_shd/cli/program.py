"""The command line: `dit-shd COMMAND [words] [key=value ...]`; the commands are the files of cli/commands.

Errors a user can cause are one line and exit code 2. A signal ends a command with 128 and its number: 130 for Ctrl-C,
143 for SIGTERM, 138 for SIGUSR1. Training first finishes its step and saves; a second Ctrl-C ends it at once.
"""

import io
import logging
import sys
from argparse import Namespace
from collections.abc import Sequence

from dit_shd.cli.arguments import parser_of, trusted, values_of
from dit_shd.cli.commands import COMMANDS
from dit_shd.cli.specification import specifications
from dit_shd.core import plugins
from dit_shd.core.config import make
from dit_shd.core.distributed import leave_group
from dit_shd.core.errors import UserError
from dit_shd.core.places import check_values
from dit_shd.core.signals import Stopped, terminable


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Its words; those of the process if None.

    Returns:
        The exit code.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    for package in trusted(words):
        plugins.trust(package)
    try:
        commands = specifications(words)
    except UserError as error:
        print(f"dit-shd: {error}", file=sys.stderr)
        return 2
    options = parser_of(commands).parse_args(words)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # not every name of a file can be printed everywhere
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("dit_shd").setLevel(logging.INFO)
    try:
        with terminable():
            _run(options)
    except Stopped as stopped:
        print(f"dit-shd {options.command}: {stopped}", file=sys.stderr)
        return stopped.code
    except UserError as error:
        print(f"dit-shd {options.command}: {error}", file=sys.stderr)
        return 2
    except (OSError, MemoryError, RecursionError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        print(f"dit-shd {options.command}: {reason}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        message = "interrupted; the same command goes on from what is saved"
        print(f"\ndit-shd {options.command}: {message}", file=sys.stderr)
        return 130
    finally:
        leave_group()
    return 0


def _run(options: Namespace) -> None:
    """Check that files exist, then import the command and run it."""
    values = values_of(options)
    if not values.get("dry_run"):  # which does not require them
        check_values(values, options.specification.places)
    command = COMMANDS.find(options.command)()
    where = "config" if "" in options.specification.words else options.command  # a file of values is the config
    command.run(make(command.config, values, where))


if __name__ == "__main__":
    sys.exit(main())
