"""The command line: `dit-shd COMMAND [words] [key=value ...]`; the commands are the files of cli/commands.

Errors a user can cause are one line and exit code 2. A signal ends a command with 128 and its number: 130 for Ctrl-C,
143 for SIGTERM, 138 for SIGUSR1, 129 for SIGHUP, 141 where the reader of a pipe has ended. Training first finishes its
step and saves; a second Ctrl-C ends it at once.
"""

import io
import logging
import signal
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager

import dit_shd
from dit_shd.cli import help
from dit_shd.cli.arguments import Line, similar_commands, split, values_of
from dit_shd.cli.commands import COMMANDS
from dit_shd.cli.config_places import check_places
from dit_shd.cli.specification import Specification, command_names, specification
from dit_shd.core import plugins, status, streams
from dit_shd.core.config import make
from dit_shd.core.distributed import check_alone, leave_group
from dit_shd.core.errors import UserError, error_line
from dit_shd.core.memory import is_out_of_memory, memory_line
from dit_shd.core.places import check_values
from dit_shd.core.signals import Stopped, terminable

RESUMED = ("train", "sample", "encode", "demo", "study", "plot")
"""Commands that save their work as they go."""
GOES_ON, ENDS = "the same command goes on from what is saved", "what it had not written is lost"
OF_TORCHAO = "torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer"
"""Where torchao warns, once diffusers imports it, of what no user of a command can change."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Its words; those of the process if None.

    Returns:
        The exit code.
    """
    streams.open_missing()
    try:
        line = split(sys.argv[1:] if argv is None else argv)
        text = _answered(line)
        command = None if text is not None else _command(line)
    except UserError as error:
        print(f"dit-shd: {error}", file=sys.stderr)
        return 2
    if command is None:
        return _print(text or "")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # not every name of a file can be printed everywhere
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("dit_shd").setLevel(logging.INFO)
    for name in OF_TORCHAO:
        logging.getLogger(name).setLevel(logging.ERROR)
    words = GOES_ON if command.name in RESUMED else ENDS
    try:
        with terminable(words):
            _run(line, command)
        leave_group(ended=True)
    except Stopped as stopped:
        print(f"dit-shd {command.name}: {stopped}", file=sys.stderr)
        return stopped.code
    except UserError as error:
        print(f"dit-shd {command.name}: {error}", file=sys.stderr)
        return 2
    except (OSError, MemoryError, RecursionError, RuntimeError) as error:
        if isinstance(error, BrokenPipeError) and streams.let_go():
            return 128 + signal.SIGPIPE
        if is_out_of_memory(error):
            print(f"dit-shd {command.name}: {memory_line(error, command.name == 'train')}", file=sys.stderr)
            return 2
        if isinstance(error, RuntimeError) and not isinstance(error, RecursionError):
            raise
        print(f"dit-shd {command.name}: {error_line(error, 1000)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\ndit-shd {command.name}: interrupted; {words}", file=sys.stderr)
        return 130
    finally:
        leave_group()
    return 0


def _print(text: str) -> int:
    """Print help; a reader such as `head` may close the pipe before its end."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        streams.let_go()
    return 0


def _answered(line: Line) -> str | None:
    """The text that a command line asks for; None where it is to run a command."""
    for package in line.trusted:
        plugins.trust(package)
    if line.version:
        return f"dit-shd {dit_shd.__version__}"
    if not line.command and line.flags:
        raise UserError(f"{line.flags[0][0]}: wanted a command first; dit-shd --help lists them")
    if not line.command:
        return help.program({name: specification(name) for name in command_names()})
    if line.help is None:
        return None
    command = _command(line)
    return help.topic(command, line.help) if line.help else help.command(command)


def _command(line: Line) -> Specification:
    names = command_names(line.command)
    if line.command not in names:
        raise similar_commands(line.command, names)
    return specification(line.command)


@contextmanager
def _no_warnings_of_imports() -> Generator[None]:
    """Keep back what other libraries log while they are imported, as of optional packages that no command uses."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def _run(line: Line, spec: Specification) -> None:
    """Check words and files, then import the command and run it."""
    values = values_of(line, spec)
    if not values.get("dry_run"):  # which does not require them
        check_places(values, line, spec)
        check_values(values, spec.places)
    with status.shown(f"dit-shd {spec.name}: loading ..."), _no_warnings_of_imports():
        command = COMMANDS.find(spec.name)()
    if not command.divides:
        check_alone(f"dit-shd {spec.name}")
    where = "config" if "" in spec.words else spec.name  # a file of values is the config
    command.run(make(command.config, values, where))


if __name__ == "__main__":
    sys.exit(main())
