"""The stages of a demo that child processes do, training and sampling; what is finished is reused."""

from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dit_shd.cli.child_processes import ChildProcess, run_jobs
from dit_shd.cli.demo_folder import timed
from dit_shd.core.json_files import read_object
from dit_shd.data.image_shards import shard_files
from dit_shd.training.run_folder import RunFolder


@dataclass(frozen=True)
class Training:
    """A student that is trained."""

    title: str
    arguments: list[str]
    """The words after `dit-shd`."""
    run: Path
    steps: int

    @property
    def finished(self) -> bool:
        """Whether the last checkpoint and the student are there."""
        last = self.run / "checkpoints" / f"step_{self.steps:08d}"
        return last.is_dir() and (self.run / "student").is_dir()

    def done(self) -> int:
        """The last step in the run's metrics."""
        try:
            return int(RunFolder(self.run).metrics()[-1]["step"])
        except (OSError, ValueError, LookupError):
            return 0  # no row yet, or half a row


@dataclass(frozen=True)
class Sampling:
    """Images that are sampled from a model."""

    arguments: list[str]
    """The words after `dit-shd`."""
    file: Path
    count: int
    batch: int

    def done(self) -> int:
        """Images in finished shards, or in the file."""
        parts = self.file.with_name(self.file.name + ".parts")
        if parts.is_dir():
            return min(self.count, self.batch * len(shard_files(parts)))
        return self.count if self.file.is_file() else 0

    def recorded(self) -> dict[str, Any] | None:
        """The settings beside the file; None where one of the two is missing."""
        sidecar = self.file.with_suffix(".json")
        if not (self.file.is_file() and sidecar.is_file()):
            return None
        return read_object(sidecar)


def train(out: Path, trainings: Mapping[str, Training]) -> set[str]:
    """Train the students that are not finished.

    Args:
        out: The demo's folder.
        trainings: The trainings, by name.

    Returns:
        Their names.
    """
    jobs = {
        name: ChildProcess(
            each.title, each.arguments, out / "logs" / f"train_{name}.log", each.steps, "step", each.done
        )
        for name, each in trainings.items()
        if not each.finished
    }
    if not jobs:
        print("training: finished before, reused")
        return set()
    with timed(out, "training"):
        run_jobs([*jobs.values()], "training")
    return {*jobs}


def sample(out: Path, samplings: Mapping[str, Sampling], missing: Set[str]) -> bool:
    """Sample from some models, the large teacher first.

    Args:
        out: The demo's folder.
        samplings: The samplings, by the model's name.
        missing: Names of those to do.

    Returns:
        Whether there were any.
    """
    logs = {name: out / "logs" / f"sample_{name}.log" for name in samplings}
    jobs = [
        ChildProcess(name, [*each.arguments, "force=true"], logs[name], each.count, "img", each.done)
        for name, each in samplings.items()
        if name in missing
    ]
    if not jobs:
        print("sampling: finished before, reused")
        return False
    with timed(out, "sampling"):
        run_jobs(jobs, "sampling")
    return True
