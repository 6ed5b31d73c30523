"""Commands of ours as child processes, side by side, one thread each, with a progress bar for each."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dit_shd.core.errors import UserError

POLL_SECONDS = 0.25
LINE_SECONDS = 20
"""Between two lines where there is no terminal to draw bars on."""


@dataclass(frozen=True)
class Job:
    """One `dit-shd` command. `done` looks at what it wrote and counts the units ready, of `total`."""

    name: str
    arguments: list[str]
    log: Path
    total: int
    unit: str
    done: Callable[[], int]


def run_jobs(jobs: Sequence[Job], title: str, at_once: int = 2) -> None:
    """Run all jobs, in their order, `at_once` side by side; what they print goes to their logs.

    Raises:
        UserError: a job failed; its last lines have been printed then, and the others are stopped.
    """
    waiting, running = list(jobs), dict[str, tuple[Job, subprocess.Popen[bytes]]]()
    show = _Bars(jobs) if sys.stderr.isatty() else _Lines(jobs, title)
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                job = waiting.pop(0)
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


def _start(job: Job) -> "subprocess.Popen[bytes]":
    package = str(Path(__file__).resolve().parents[2])
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(paths),
    }
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with open(job.log, "wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "dit_shd", *job.arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
        )


def _failure(job: Job, code: int) -> UserError:
    text = job.log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n")
    lines = [line.rstrip() for line in text.splitlines() if line.strip()]
    print(f"\nthe last lines of {job.log}:", *lines[-12:], sep="\n  ", file=sys.stderr)
    reason = lines[-1] if lines else "it printed nothing"
    return UserError(f"{job.name}: failed with exit code {code} ({reason}); all it printed is in {job.log}")


class _Bars:
    """A live bar for each job."""

    def __init__(self, jobs: Sequence[Job]):
        from tqdm import tqdm

        self.bars: list[tuple[Job, Any]] = [
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
    """A plain line every now and then."""

    def __init__(self, jobs: Sequence[Job], title: str):
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
        """Nothing to tidy up."""
