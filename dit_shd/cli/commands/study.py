"""Run a grid of training runs over seeds and report the results: rows, a table, one page.

The same command goes on where it stopped. A queue runs single cells: dit-shd study STUDY.yaml cell=17

A study file (all of its keys are below, and in experiments/README.md):

    title: Does attention help?
    config: base.yaml  # of training, beside this file (all other paths count from where the command runs); run and
                       # seed are the study's
    grid:
      loss:
        output: {losses: [{name: output}]}
        shd: {losses: [{name: output}, {name: shd, weight: 0.1}]}
    seeds: [0, 1, 2]
    sampling: {count: 500, steps: 50, labels: balanced}  # keys of dit-shd sample
    evaluators:  # name: keys of dit-shd evaluate
      fid: {features: inception, reference: real.npz, metrics: [frechet]}
    baseline: {loss: output}  # what every other loss is compared with, seed by seed
"""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from dit_shd.cli.commands import Command
from dit_shd.core.errors import UserError
from dit_shd.reports.html import is_page
from dit_shd.reports.study_page import write_study_page
from dit_shd.reports.tables import plain_table
from dit_shd.study.analysis import analyse
from dit_shd.study.design import Cell
from dit_shd.study.report import comparisons_table, notes, report_of, state, variants_table
from dit_shd.study.results import Progress
from dit_shd.study.runner import Runner, StudyConfig


class StudyCommand(Command[StudyConfig]):
    """Run a grid of training runs over seeds."""

    config = StudyConfig
    words: ClassVar = {"study": "STUDY.yaml"}
    words_help = "a study file, see experiments/"
    file = ("dit_shd.study.design", "Study")

    def run(self, config: StudyConfig) -> None:
        runner = Runner(config)
        if config.dry_run:
            runner.check()
            _list(runner.progress())
            runner.check_places()
            return
        page = page_of(runner)
        if page.exists() and not is_page(page):
            raise UserError(f"{page}: is where the page is written, and holds something else; move it")
        progress = runner.run()
        if config.cell is None:
            show(runner, progress)
        if config.run:
            for cell, error in runner.errors.items():
                raise UserError(f"cell {cell.number}, {cell.name}: {error}")
            _refuse_failures(progress, runner.cells if config.cell is None else [runner.cells[config.cell]])


def _refuse_failures(progress: Progress, cells: Sequence[Cell]) -> None:
    """End in an error, for a queue or a script to see, where cells that were to run failed, now or before.

    Raises:
        UserError: With the first error; all are in results.jsonl.
    """
    failed = [cell for cell in cells if cell in progress.results and not progress.results[cell].done]
    if failed:
        which = f"cell {failed[0].number}, {failed[0].name}"
        count = f"{len(failed)} of {len(cells)} cells failed; " if len(cells) > 1 else ""
        error = progress.results[failed[0]].error
        raise UserError(f"{count}{which}: failed: {error}; retry=true runs what failed again")


def show(runner: Runner, progress: Progress) -> None:
    """Print the tables of a study and write its page beside the study file."""
    analysis = analyse(progress.study, progress.results.values())
    compared = [comparisons_table(analysis)] if analysis.comparisons else []
    for table in (variants_table(analysis), *compared):
        print("\n" + plain_table(table.headings, table.rows))
    page = page_of(runner)
    write_study_page(report_of(progress, analysis, runner.home / "samples", runner.place), page)
    lines = [state(progress, analysis), *(f"note: {note}" for note in notes(progress, analysis)), f"the page: {page}"]
    print("", *lines, sep="\n")


def page_of(runner: Runner) -> Path:
    """Where the page of a study is written: beside its file."""
    return runner.home / f"{runner.config.study.stem}.html"


def _list(progress: Progress) -> None:
    """Print every cell with its number and state."""
    for cell in progress.cells:
        row = progress.results.get(cell)
        words = "to be run" if row is None else row.status + (f": {row.error}" if row.error else "")
        print(f"{cell.number:4d}  {cell.name}  {words}")
