"""Hostile and broken input: classes of generated cases, the same at every run.

    python tests/hostile            # the table of docs/reliability.md

A case makes something a user could give (a config, a file, a command line), mostly by damaging what is right, and gives
it to the code. It may be accepted or refused by a UserError (exit code 2 on the command line). Any other exception, any
code executed, any file outside the case's folder, or memory beyond LIMIT_MIB is a failure.
"""

import gc
import random
import resource
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import chdir, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from dit_shd.core.errors import UserError

LIMIT_MIB = 1024
"""What the peak of the process may rise by in one class of cases; every file given is smaller than 2 MiB."""

Case = Callable[[random.Random, Path], object]
"""case(random, folder): builds one input in an empty folder, and gives it to the code."""


@dataclass(frozen=True)
class Class:
    """A class of cases."""

    name: str
    what: str
    """What is made, and who reads it."""
    count: int
    case: Case


def outcomes(cls: Class, numbers: range | None = None, classes_seed: int = 0) -> Counter:
    """Run every case, or those of some numbers; how many were accepted and refused.

    Raises:
        AssertionError: a case executed code, wrote outside its folder, or took too much memory.
    """
    found: Counter = Counter()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in numbers or range(cls.count):
        draw = random.Random(f"{classes_seed}/{cls.name}/{number}")
        with tempfile.TemporaryDirectory() as outer:
            folder = Path(outer) / "inside"
            folder.mkdir()
            with chdir(folder), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
                try:
                    cls.case(draw, folder)
                    found["accepted"] += 1
                except UserError as error:
                    assert "\n" not in str(error).strip(), f"{cls.name} {number}: more than one line: {error}"
                    found["refused"] += 1
                except Exception as error:
                    raise AssertionError(f"{cls.name} {number}: {type(error).__name__}: {error}") from error
            strangers = [path.name for path in Path(outer).iterdir() if path != folder]
            assert not strangers, f"{cls.name} {number}: wrote {strangers} outside its folder"
            assert not (folder / PWNED).exists(), f"{cls.name} {number}: executed code"
    gc.collect()
    risen = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert risen < LIMIT_MIB, f"{cls.name}: memory rose by {risen:.0f} MiB"
    return found


PWNED = "pwned"
"""The file that executed code would leave behind."""


def all_classes() -> list[Class]:
    from . import captures, commands, configs, encoding, files, runs

    return [*configs.CLASSES, *files.CLASSES, *encoding.CLASSES, *runs.CLASSES, *commands.CLASSES, *captures.CLASSES]


def table() -> str:
    """The classes, their counts and outcomes, in Markdown."""
    lines = ["| class | what is made, who reads it | cases | accepted | refused |", "|---|---|---|---|---|"]
    total: Counter = Counter()
    for cls in all_classes():
        found = outcomes(cls)
        total += found
        lines.append(f"| {cls.name} | {cls.what} | {cls.count} | {found['accepted']} | {found['refused']} |")
    lines.append(f"| all | | {sum(total.values())} | {total['accepted']} | {total['refused']} |")
    return "\n".join(lines) + "\n"
