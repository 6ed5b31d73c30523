"""Run a grid of training runs over seeds and say what it shows: rows, a table, one page.

The same command goes on where it stopped. A queue runs single cells: dit-shd study STUDY.yaml cell=17
"""

from typing import ClassVar

from dit_shd.cli.commands import Command
from dit_shd.study.runner import Runner, StudyConfig


class StudyCommand(Command[StudyConfig]):
    """Run a grid of training runs over seeds."""

    config = StudyConfig
    words: ClassVar = {"study": "STUDY.yaml"}
    words_help = "a study file, see experiments/"

    def run(self, config: StudyConfig) -> None:
        runner = Runner(config)
        runner.run()
