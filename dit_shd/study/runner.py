"""Running a study: shared work once, then its cells, several at once; what has ended is never run again."""

import shlex
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dit_shd.core.config import REQUIRED, check_ranges, option
from dit_shd.core.errors import UserError
from dit_shd.core.files import write_text
from dit_shd.core.lock import LOCK, Lock
from dit_shd.core.places import expanded
from dit_shd.core.signals import Stopped
from dit_shd.core.yaml_files import parse_yaml, read_yaml
from dit_shd.data.sources.listing import scan
from dit_shd.diffusion.sample_files import lock_file
from dit_shd.evaluation.metrics import METRICS
from dit_shd.evaluation.statistics_file import is_statistics
from dit_shd.study.cell_run import SAMPLES, STOPPED, assignments, run_cell
from dit_shd.study.checks import check_cells
from dit_shd.study.design import Cell, Evaluator, cells_of, read_study
from dit_shd.study.places import YAML, check_places, outputs_of
from dit_shd.study.processes import DIT_SHD, Commands
from dit_shd.study.results import RESULTS, ROW, CellResult, Progress, collect, of_cells, read_results
from dit_shd.study.settings import canonical_sha256

CELL_LOCK = ".cell.lock"
SHARED_LOCK = ".shared.lock"
WAIT_SECONDS = 2.0
"""Between two checks whether another process has finished the shared work."""


@dataclass(frozen=True)
class StudyConfig:
    """A study and how much of it runs now."""

    study: Path = option(REQUIRED, "the study file (YAML)")
    cell: int | None = option(None, "run this cell alone, by its number: one job of a queue or an array")
    workers: int = option(1, "cells at once", range=(1, 10_000))
    threads: int = option(1, "CPU threads of a command", range=(1, 10_000))
    launcher: str = option("", "words to train and sample with: accelerate launch --num_processes 8 -m dit_shd")
    cells: Path | None = option(None, "where the run folders go; empty: cells/ beside the study file")
    retry: bool = option(False, "run cells again that failed")
    dry_run: bool = option(False, "list the cells and what has become of them, and run nothing")
    programs: bool = option(False, "run the programs that the study file names as evaluators; read them first")
    run: bool = option(True, "false: run nothing, show what has ended (tables and page), whoever runs it")


class Runner:
    """What is to be run of a study, and where.

    Raises:
        UserError: The study file, or the cell's number, is wrong.
    """

    def __init__(self, config: StudyConfig, say: Callable[[str], None] = print):
        check_ranges(config, "study.")
        self.config, self.say = config, say
        self.study = read_study(config.study)
        self.cells = cells_of(self.study, config.study)
        if config.cell is not None and not 0 <= config.cell < len(self.cells):
            raise UserError(f"study.cell: wanted a number from 0 to {len(self.cells) - 1}, found {config.cell}")
        self.home = config.study.parent
        self.folder = (config.cells or self.home / "cells").absolute()
        self.errors: dict[Cell, str] = {}
        """Of cells that could not have a row: files of them that are damaged or cannot be written."""
        self._before: dict[Cell, CellResult | None] = {}
        """How those that are left ended before, if they did."""
        self._over_budget, self._said_missing = False, False
        self.commands = Commands(config.launcher, config.threads)

    def place(self, cell: Cell) -> Path:
        """The folder of a cell."""
        return self.folder / cell.name

    def progress(self) -> Progress:
        """All that is known now."""
        rows = collect(self.home / RESULTS, map(self.place, self.cells))
        results = of_cells(rows, self.cells)
        return Progress(self.study, self.cells, results, len(rows) - len(results))

    def run(self) -> Progress:
        """Run what is left of the cells that are asked for.

        Raises:
            UserError: Shared work failed.
            Stopped: By a signal; training saves before it ends.
        """
        left = self._left() if self.config.run else []
        self._before = {cell: self._row(cell) for cell in left}
        if left:
            self.check()
            self.check_places()
            self._refuse_programs()
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                reason = f"cannot be made a folder ({error.strerror})"
                raise UserError(f"study.cells: {self.folder} {reason}; name another with cells=FOLDER") from error
            try:
                self._run_cells(left, self._shared())
            except BaseException:
                self.commands.stop()
                raise
        return self.progress()

    def check(self) -> None:
        """Refuse all that can be refused before a cell runs, while one is to run.

        Raises:
            UserError: Another study in the folder, or what a command of a cell would refuse.
        """
        if self._left():
            self._refuse_others()
            check_cells(self.study, self.cells)

    def check_places(self) -> None:
        """Refuse what the cells that are left read where nothing is.

        Raises:
            UserError: Naming it.
        """
        if left := self._left():
            check_places(self.study, left, self.folder)

    def _refuse_others(self) -> None:
        """Refuse a second study in the folder: cells and pictures have the names of variants.

        Raises:
            UserError: Naming it.
        """
        base = parse_yaml(self.config.study.read_text("utf-8")).get("base")
        for file in sorted(self.home.glob("*.yaml")):
            values = {}
            if file.name not in (self.config.study.name, base):
                with suppress(UserError):  # it is nobody's to run
                    values = read_yaml(file)
            if {"grid", "seeds"} <= values.keys():
                raise UserError(
                    f"study: {file} is another study in the same folder, and cells, results and pictures are one "
                    "study's; move one of them to a folder of its own"
                )

    def _refuse_programs(self) -> None:
        """Refuse programs that a study file names, unless the user has said that they may run.

        Raises:
            UserError: Naming them.
        """
        programs = [evaluator.program for evaluator in self.study.evaluators.values() if evaluator.program]
        if programs and not self.config.programs:
            raise UserError(
                f"study: {self.config.study} runs programs to score samples ({'; '.join(programs)}); "
                "read them, then add programs=true"
            )

    def _left(self) -> list[Cell]:
        """Cells that are asked for and have not ended."""
        results = self.progress().results
        cells = self.cells if self.config.cell is None else [self.cells[self.config.cell]]
        return [c for c in cells if c not in results or (self.config.retry and not results[c].done)]

    def _run_cells(self, cells: list[Cell], references: dict[str, str]) -> None:
        """Run cells, `workers` at once, in their order; an exception ends those that run."""
        waiting, running = list(cells), dict[Future[CellResult | None], Cell]()
        with ThreadPoolExecutor(self.config.workers) as pool:
            try:
                while waiting or running:
                    while waiting and len(running) < self.config.workers and self._affordable():
                        cell = waiting.pop(0)
                        running[pool.submit(self._run_cell, cell, references)] = cell
                    if not running:
                        break
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        cell, result = running.pop(future), future.result()
                        if result is not None:
                            self._announce(cell, result)
            except BaseException:
                self.commands.stop()  # the pool waits for its threads
                raise

    def _run_cell(self, cell: Cell, references: dict[str, str]) -> CellResult | None:
        """The result of a cell; None where another process is at it, or something keeps it from having a row."""
        place, free = self.place(cell), False
        try:
            with Lock(place / CELL_LOCK, "dit-shd study"):
                for file in (place / "run" / LOCK, lock_file(place / SAMPLES)):
                    if file.exists():  # a kill of the study may have left its training or sampling at work
                        Lock(file, "dit-shd study").release()
                free = True
                if self._row(cell) not in (None, self._before[cell]):  # another process has run it meanwhile
                    return None
                return run_cell(self.study, cell, place, references, self.commands)
        except UserError as error:
            self.say(f"cell {cell.number}, {cell.name}: left out: {error}")
            if free:
                self.errors[cell] = str(error)
            return None

    def _row(self, cell: Cell) -> CellResult | None:
        """How a cell ended, if it did."""
        return next((row for row in read_results(self.place(cell) / ROW) if row.sha256 == cell.sha256), None)

    def _affordable(self) -> bool:
        """Whether the study may begin another cell."""
        limit = self.study.cpu_hours
        if limit is None:
            return True
        spent = sum(row.cpu_hours for row in self.progress().results.values())
        if spent >= limit and not self._over_budget:
            self._over_budget = True
            self.say(f"{spent:.2f} CPU hours spent of cpu_hours: {limit:g}; no other cell begins")
        return spent < limit

    def _announce(self, cell: Cell, result: CellResult) -> None:
        """Take the row into results.jsonl, and say how it ended."""
        progress = self.progress()
        figure = self.study.figure if self.study.figure in result.figures else next(iter(result.figures), "")
        words = f"{figure} {result.figures.get(figure, float('nan')):.3f}" if result.done else f"failed: {result.error}"
        taken = sum(result.seconds.values())
        self.say(f"[{len(progress.results)}/{len(self.cells)}] {cell.name}: {words} ({taken:.0f} s)")
        if result.done and self.study.figure not in ("", *result.figures) and not self._said_missing:
            self._said_missing = True
            known = ", ".join(result.figures) or "none"
            self.say(
                f"study.figure: wanted '{self.study.figure}', which decides, found {known} "
                f"in {cell.name}; name one of them, or an evaluator that gives it: without it nothing is compared"
            )

    def _shared(self) -> dict[str, str]:
        """Do the work that all cells share, each part once for all processes: evaluator -> its reference."""
        for line in self.study.prepare:
            words = [DIT_SHD, *shlex.split(line)]
            configs = [read_yaml(file) for file in map(Path, words) if file.suffix in YAML and file.is_file()]
            self._once(f"prepare-{canonical_sha256([words, *configs] if configs else words)[:8]}", words)
        evaluators = self.study.evaluators.items()
        return {name: self._reference(name, evaluator) for name, evaluator in evaluators if not evaluator.program}

    def _reference(self, name: str, evaluator: Evaluator) -> str:
        """What an evaluator compares with: statistics, made once, where its metrics need no images of the reference."""
        if any(METRICS.find(metric.name).needs_reference_images for metric in evaluator.metrics):
            return evaluator.reference
        if is_statistics(evaluator.reference):
            return evaluator.reference  # they are made already
        cut = {} if evaluator.size is None else {"size": evaluator.size}
        files = [evaluator.reference, *(x for x in evaluator.features.options.values() if isinstance(x, str))]
        age = [entry for file in files for entry in _age(Path(expanded(file)))]
        about = [evaluator.features.as_value(), evaluator.reference, *age, *cut.values()]
        file = self.folder / "shared" / f"{name}-{canonical_sha256(about)[:8]}.npz"
        keys = {"features": about[0], "out": str(file), "force": True, **cut}  # of a study that was killed before .done
        self._once(file.stem, [DIT_SHD, "statistics", evaluator.reference, *assignments(keys)])
        return str(file)

    def _once(self, name: str, words: list[str]) -> None:
        """Run a command unless it is done and what it made is still there; a process that is at it is waited for."""
        shared = self.folder / "shared"
        done = shared / f"{name}.done"
        while not _still_done(done):
            lock = _lock_if_free(shared / SHARED_LOCK)
            if lock is None:
                time.sleep(WAIT_SECONDS)
                continue
            with lock:
                if not _still_done(done):
                    self._run_shared(done, words)

    def _run_shared(self, done: Path, words: list[str]) -> None:
        self.say(f"shared work: {shlex.join(words)}")
        log = done.with_suffix(".log")
        outcome = self.commands.run(words, log)
        if outcome.signal:
            raise Stopped(outcome.signal, STOPPED)
        if outcome.error:
            raise UserError(f"study: shared work failed: {outcome.error}; all it printed is in {log}")
        made = [str(place) for place in outputs_of(words) if place.exists()]
        write_text(done, "".join(line + "\n" for line in (shlex.join(words), *made)))


def _still_done(done: Path) -> bool:
    """Whether shared work is done: it was, and what it made has not been deleted since."""
    return done.exists() and all(Path(line).exists() for line in done.read_text(encoding="utf-8").splitlines()[1:])


def _age(place: Path) -> list[list[Any]]:
    """What changes when a file, or one anywhere in a folder, is written anew; empty for a name of another kind."""
    listing = scan(place, follow_links=True, what="reference") if place.is_dir() else None
    names = sorted([*listing.images, *listing.others]) if listing else [""]
    stats = [(name, (place / name).stat()) for name in names if (place / name).exists()]
    return [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats]


def _lock_if_free(file: Path) -> Lock | None:
    try:
        return Lock(file, "dit-shd study")
    except UserError:
        return None
