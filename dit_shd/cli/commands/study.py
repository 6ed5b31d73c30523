"""Run a grid of training runs over seeds and report the results: rows, a table, one page.

The same command goes on where it stopped. A queue runs single cells: dit-shd study STUDY.yaml cell=17
"""

from typing import ClassVar

from dit_shd.cli.commands import Command
from dit_shd.reports.study_page import write_study_page
from dit_shd.reports.tables import plain_table
from dit_shd.study.analysis import analyse
from dit_shd.study.report import comparisons_table, notes, report_of, state, variants_table
from dit_shd.study.results import Progress
from dit_shd.study.runner import Runner, StudyConfig


class StudyCommand(Command[StudyConfig]):
    """Run a grid of training runs over seeds."""

    config = StudyConfig
    words: ClassVar = {"study": "STUDY.yaml"}
    words_help = "a study file, see experiments/"

    def run(self, config: StudyConfig) -> None:
        runner = Runner(config)
        if config.dry_run:
            _list(runner.progress())
            return
        if config.cell is not None:
            runner.run()
            return
        show(runner, runner.run())


def show(runner: Runner, progress: Progress) -> None:
    """Print the tables of a study and write its page beside the study file."""
    analysis = analyse(progress.study, progress.results.values())
    for table in (variants_table(analysis), comparisons_table(analysis)):
        print("\n" + plain_table(table.headings, table.rows))
    page = runner.home / f"{runner.config.study.stem}.html"
    write_study_page(report_of(progress, analysis, runner.home / "samples", runner.place), page)
    lines = [state(progress, analysis), *(f"note: {note}" for note in notes(progress, analysis)), f"the page: {page}"]
    print("", *lines, sep="\n")


def _list(progress: Progress) -> None:
    """Print every cell with its number and state."""
    for cell in progress.cells:
        row = progress.results.get(cell)
        words = "to be run" if row is None else row.status + (f": {row.error}" if row.error else "")
        print(f"{cell.number:4d}  {cell.name}  {words}")
