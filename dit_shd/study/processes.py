"""Commands as child processes: what they took, and an end for all of them at once."""

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dit_shd.core.distributed import LAUNCHER_VARIABLES
from dit_shd.core.plugins import trusted
from dit_shd.core.signals import SIGNALS

STOPPED = tuple(128 + number for number in SIGNALS)
"""Exit codes of a command that a signal ended in good order."""
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
DIT_SHD = "dit-shd"
PROGRAMS = {DIT_SHD: (sys.executable, "-m", "dit_shd"), "python": (sys.executable,)}
"""First word of a command -> the words in its place: what runs here, whatever the PATH says."""
LAUNCHED = ("train", "sample", "encode")
"""Commands that several processes can share."""


@dataclass(frozen=True)
class Usage:
    """What a command took: seconds on the clock and of all its processors, and the largest resident memory.

    Linux counts a child's memory from what its parent had (some 800 MiB of a study): less than that is not seen.
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    memory_mib: float = 0.0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.seconds + other.seconds,
            self.cpu_seconds + other.cpu_seconds,
            max(self.memory_mib, other.memory_mib),
        )


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    usage: Usage
    error: str = ""
    """What it printed last, where it failed."""
    signal: int = 0
    """What stopped it from outside; 0 for nothing."""

    @property
    def done(self) -> bool:
        """Whether it did what it was for."""
        return not (self.error or self.signal)


class Commands:
    """Runs commands from several threads, and can end all that run.

    Args:
        launcher: Words in place of `dit-shd` for commands that several processes share (LAUNCHED), as
            "accelerate launch --num_processes 8 -m dit_shd".
        threads: The number of threads of each process, on CPUs.
    """

    def __init__(self, launcher: str = "", threads: int = 1):
        self.launcher = tuple(shlex.split(launcher))
        self.environment = environment(threads)
        self._pids: set[int] = set()
        self._lock = threading.Lock()
        self.stopped = False

    def run(self, words: Sequence[str], log: Path) -> Outcome:
        """Run one command to its end; what it prints is added to `log`."""
        log.parent.mkdir(parents=True, exist_ok=True)
        start = time.perf_counter()
        with open(log, "ab") as output:
            output.write(f"$ {shlex.join(words)}\n".encode())
            output.flush()
            try:
                process = self._start(self.resolved(words), output)
            except OSError as error:
                return Outcome(Usage(), f"{words[0]}: cannot be run ({error.strerror})")
        if process is None:
            return Outcome(Usage(), signal=signal.SIGTERM)
        _, status, used = os.wait4(process.pid, 0)
        with self._lock:
            self._pids.discard(process.pid)
        code = process.returncode = os.waitstatus_to_exitcode(status)
        mebibyte = 1024 * (1024 if sys.platform == "darwin" else 1)
        usage = Usage(time.perf_counter() - start, used.ru_utime + used.ru_stime, used.ru_maxrss / mebibyte)
        if self.stopped or code in STOPPED or -code in SIGNALS:
            return Outcome(usage, signal=-code if code < 0 else max(0, code - 128) or signal.SIGTERM)
        name = words[1] if words[0] == DIT_SHD else words[0]
        return Outcome(usage, f"{name}: {_last_line(log, code, name)}" if code else "")

    def resolved(self, words: Sequence[str]) -> list[str]:
        """The words that are run: with the launcher, or the programs that run here, in place of the first one.

        What this process trusts, a command of dit_shd does, too.
        """
        first, *rest = words
        if first != DIT_SHD:
            return [*PROGRAMS.get(first, (first,)), *rest]
        program = self.launcher if self.launcher and rest[0] in LAUNCHED else PROGRAMS[first]
        return [*program, *rest, *(word for package in trusted() for word in ("--trust", package))]

    def _start(self, words: Sequence[str], output: object) -> "subprocess.Popen[bytes] | None":
        """The process; None where none is to begin any more."""
        with self._lock:
            if self.stopped:
                return None
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=output,  # type: ignore[arg-type]
                stderr=subprocess.STDOUT,
                env=self.environment,
            )
            self._pids.add(process.pid)
            return process

    def stop(self) -> None:
        """Ask all that run to end (training finishes its step and saves), and begin no more."""
        with self._lock:
            self.stopped = True
            for pid in self._pids:
                with suppress(ProcessLookupError):  # it has just ended
                    os.kill(pid, signal.SIGTERM)


def commit() -> str:
    """The commit of the package that runs, with + where its files differ from it; empty outside of a repository."""
    package = str(Path(__file__).resolve().parents[1])

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", package, *words], capture_output=True, text=True, timeout=60, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + ("+" if git("status", "--porcelain", ".") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def environment(threads: int) -> Mapping[str, str]:
    """For a child that runs this package by some threads; what a launcher said is not meant for it."""
    package = str(Path(__file__).resolve().parents[2])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    inherited = {key: value for key, value in os.environ.items() if key not in LAUNCHER_VARIABLES}
    return inherited | dict.fromkeys(THREADS, str(threads)) | {"PYTHONPATH": os.pathsep.join(paths)}


def printed(log: Path) -> list[str]:
    """The lines that a command printed, without empty ones."""
    text = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n")
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def _last_line(log: Path, code: int, name: str) -> str:
    """What a command said last, by its name: an error of dit_shd, behind which launchers say more, or the last line."""
    lines = printed(log)
    begin = max((i for i, line in enumerate(lines) if line.startswith("$ ")), default=-1)
    errors = [line for line in lines[begin + 1 :] if line.startswith(f"{DIT_SHD} {name}: ")]
    ended = f"ended by signal {-code}" if code < 0 else f"exit code {code}"
    return f"{(errors or lines)[-1].strip()[:500] if lines else 'it printed nothing'} ({ended})"
