"""Show runs by their logs: loss terms, alpha of every merge, evaluations, pace and samples, on one page.

While a run trains, the command goes on: it writes the page anew, and the page reloads itself, until the runs end or
Ctrl-C. A page of one run is RUN/plot.html.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from dit_shd.cli.commands import Command
from dit_shd.core.config import REQUIRED, check_ranges, checked, option
from dit_shd.core.errors import UserError
from dit_shd.core.files import make_folder_of, refuse_input
from dit_shd.core.lock import LOCK, is_held
from dit_shd.core.places import Place
from dit_shd.core.run_files import DRAWN, EVALUATIONS, RUN_CONFIG, TIMING
from dit_shd.core.yaml_files import read_yaml
from dit_shd.reports.html import is_page
from dit_shd.reports.run_page import TITLE, RunLog, write_run_page
from dit_shd.training.run_folder import RunFolder

SHOWN = 4
"""Newest evaluations whose samples are shown."""
PAGE = "plot.html"


@dataclass(frozen=True)
class PlotConfig:
    """The runs and the page."""

    runs: list[Place] = option(REQUIRED, "run folders")
    out: Path | None = option(None, "the page; empty: RUN/plot.html, or plot.html here for several runs")
    watch: bool = option(True, "go on while a run trains; false: write the page once")
    every: int = option(10, "seconds between two pages", range=(1, 1e6))
    force: bool = option(False, "overwrite a file that is no page of dit_shd")


class Plot(Command[PlotConfig]):
    """Show runs by their logs, also while they train."""

    config = PlotConfig
    words: ClassVar = {"runs": "RUN..."}
    words_help = "run folders"

    def run(self, config: PlotConfig) -> None:
        page = plot(config)
        print(f"done: {page}")


def plot(config: PlotConfig) -> Path:
    """Write the page, and write it anew while a run trains.

    Args:
        config: The runs and the page.

    Returns:
        The page.

    Raises:
        UserError: No run folder, or a file of something else at `out`.
    """
    config = checked(config, "plot")
    check_ranges(config)
    folders = {name: Path(text) for name, text in _named(config.runs).items()}
    for folder in folders.values():
        if not (folder / RUN_CONFIG).is_file():
            raise UserError(f"{folder}: wanted a run folder, found no config.yaml in it")
    page = config.out or (next(iter(folders.values())) / PAGE if len(folders) == 1 else Path(PAGE))
    for file in (file for folder in folders.values() for file in folder.iterdir() if not is_page(file)):
        refuse_input(page, file)
    _refuse_overwrite(page, config.force)
    make_folder_of(page)
    announced = False
    while True:
        training = config.watch and any(map(is_training, folders.values()))
        logs = [read_log(name, folder) for name, folder in folders.items()]
        write_run_page(logs, page, config.every if training else 0)
        if not training:
            return page
        if not announced:
            print(f"{page}: open it; it is written anew every {config.every} seconds until the training ends or Ctrl-C")
            announced = True
        time.sleep(config.every)


def read_log(name: str, path: Path) -> RunLog:
    """The logs of a run folder."""
    folder = RunFolder(path)
    config = read_yaml(path / RUN_CONFIG)
    grids = [file for file in (path / DRAWN).glob("step_*.png") if file.stem.split("_")[1].isdecimal()]
    return RunLog(
        name=name,
        folder=path,
        steps=int(config.get("steps") or 0),
        metrics=folder.metrics(),
        timing=folder.rows(TIMING),
        evaluations=folder.rows(EVALUATIONS),
        samples={int(file.stem.split("_")[1]): file.read_bytes() for file in sorted(grids)[-SHOWN:]},
    )


def is_training(folder: Path) -> bool:
    """Whether a process has the run and writes to it: its lock is there and is not left over."""
    return is_held(folder / LOCK)


def _named(texts: list[str]) -> dict[str, str]:
    """Names of the runs: their folders' names, or their paths where those repeat."""
    if len(set(texts)) < len(texts):
        raise UserError(f"runs: wanted each run once, found {', '.join(texts)}")
    names = [Path(text).resolve().name for text in texts]
    return dict(zip(names if len(set(names)) == len(names) else texts, texts))


def _refuse_overwrite(page: Path, force: bool) -> None:
    if page.is_dir():
        raise UserError(f"out={page}: wanted a file, found a folder; add a file name")
    if page.exists() and not force and not is_page(page, TITLE):
        raise UserError(f"{page}: holds something else; choose another out=FILE or say force=true")
