"""Show what a run is and how far it is: models, losses, last figures, checkpoints, time left.

dit-shd show runs/shd
dit-shd show runs/*       several, one after the other
"""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from dit_shd.cli.commands import Command
from dit_shd.core.config import REQUIRED, option
from dit_shd.core.errors import UserError
from dit_shd.core.lock import LOCK, is_held
from dit_shd.core.run_files import RUN_CONFIG
from dit_shd.reports.run_summary import RunSummary, read_run, summary_lines


@dataclass(frozen=True)
class ShowConfig:
    """The runs."""

    runs: list[Path] = option(REQUIRED, "run folders")


class Show(Command[ShowConfig]):
    """Show what a run is and how far it is."""

    config = ShowConfig
    words: ClassVar = {"runs": "RUN..."}
    words_help = "run folders"

    def run(self, config: ShowConfig) -> None:
        """Print a block of lines for each run."""
        errors, shown = list[str](), 0
        for path in config.runs:
            try:
                run = _read(path)
            except UserError as error:  # of all that a folder holds, some are runs
                errors.append(str(error))
                continue
            print(*([""] if shown else []), *text(run), sep="\n")
            shown += 1
        if errors:
            raise UserError("; ".join(errors))


def _read(path: Path) -> RunSummary:
    if path.is_dir() and not (path / RUN_CONFIG).is_file():
        near = sorted(str(file.parent) for file in path.glob(f"*/{RUN_CONFIG}"))
        if near:
            raise UserError(f"{path}: wanted a run folder; it holds some: {' '.join(near[:5])}")
    return read_run(path, running=is_held(path / LOCK))


def text(run: RunSummary) -> Iterator[str]:
    """The lines of a run, and the commands that a user may want next.

    Args:
        run: As it is read.
    """
    lines = summary_lines(run)
    width = max(len(name) for name, _ in lines)
    for name, words in lines:
        yield f"{name:<{width}}  {words}"
    folder = shlex.quote(str(run.path))
    if not run.finished and not run.running:
        yield f"next: dit-shd train {folder}"
    elif run.students and run.settings.get("task", {}).get("name") in ("diffusion", "flow_matching"):
        yield f"next: dit-shd sample {folder} count=100"
