"""Commands of dit-shd as parallel child processes with one thread and one progress bar each."""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dit_shd.core.errors import UserError
from dit_shd.study.processes import environment, printed

POLL_SECONDS = 0.25
LINE_SECONDS = 20
"""Time between two lines of progress without a terminal."""


@dataclass(frozen=True)
class ChildProcess:
    """One `dit-shd` command."""

    name: str
    arguments: list[str]
    log: Path
    """The file for its output."""
    total: int
    """Number of units in all."""
    unit: str
    done: Callable[[], int]
    """Counts the finished units by the files that it wrote."""


def run_jobs(jobs: Sequence[ChildProcess], title: str) -> None:
    """Run jobs in order, two at a time; their output is written to their logs.

    Args:
        jobs: The jobs.
        title: Text before lines of progress.

    Raises:
        UserError: A job failed; its last lines are printed, and the others are stopped.
    """
    pending, running = list(jobs), dict[str, tuple[ChildProcess, subprocess.Popen[bytes]]]()
    show = _Bars(jobs) if sys.stderr.isatty() else _Lines(jobs, title)
    try:
        while pending or running:
            while pending and len(running) < 2:
                job = pending.pop(0)
                running[job.name] = (job, _start(job))
            time.sleep(POLL_SECONDS)
            for job, process in list(running.values()):
                if process.poll() is None:
                    continue
                del running[job.name]
                if process.returncode:
                    show.close()
                    raise _failure(job, process.returncode)
            show.update()
    finally:
        for _, process in running.values():
            process.terminate()
        for _, process in running.values():
            process.wait()
        show.close()


def _start(job: ChildProcess) -> "subprocess.Popen[bytes]":
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with open(job.log, "wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "dit_shd", *job.arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment(threads=1),
        )


def _failure(job: ChildProcess, code: int) -> UserError:
    lines = printed(job.log)
    print(f"\nthe last lines of {job.log}:", *lines[-12:], sep="\n  ", file=sys.stderr)
    reason = lines[-1] if lines else "it printed nothing"
    return UserError(f"{job.name}: failed with exit code {code} ({reason}); all it printed is in {job.log}")


class _Bars:
    """A progress bar for each job."""

    def __init__(self, jobs: Sequence[ChildProcess]) -> None:
        from tqdm import tqdm

        self.bars: list[tuple[ChildProcess, Any]] = [
            (
                job,
                tqdm(total=job.total, initial=job.done(), desc=f"{job.name:<16}", unit=job.unit, position=i),
            )
            for i, job in enumerate(jobs)
        ]

    def update(self) -> None:
        for job, bar in self.bars:
            done = min(job.done(), job.total)
            if done > bar.n:
                bar.update(done - bar.n)
            else:
                bar.refresh()

    def close(self) -> None:
        for _, bar in self.bars:
            bar.close()


class _Lines:
    """A line of progress every LINE_SECONDS."""

    def __init__(self, jobs: Sequence[ChildProcess], title: str) -> None:
        self.jobs, self.title = jobs, title
        self.start = self.last = time.monotonic()

    def update(self) -> None:
        if time.monotonic() - self.last >= LINE_SECONDS:
            self.last = time.monotonic()
            self._print()

    def _print(self) -> None:
        counts = ", ".join(f"{job.name} {min(job.done(), job.total)}/{job.total}" for job in self.jobs)
        print(f"{self.title}: {counts} ({time.monotonic() - self.start:.0f} s)", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Do nothing: lines need no cleaning up."""
