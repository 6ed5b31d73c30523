"""ROUGE-L of language models' responses to instructions, over sampling seeds: the figure of the paper's tables 3 and 5.

dit-shd rouge runs/dolly_gpt2_xl_to_base_shd sets=configs/language/instructions/five_sets.yaml
"""

import statistics
from typing import ClassVar

from dit_shd.analysis.responses import RougeConfig, Scores, rouge
from dit_shd.cli.commands import Command
from dit_shd.reports.tables import plain_table


class RougeCommand(Command[RougeConfig]):
    """Measure ROUGE-L of language models' responses to instructions."""

    config = RougeConfig
    words: ClassVar = {"models": "MODELS..."}
    words_help = "runs, students, folders of transformers, or hub:OWNER/NAME"

    def run(self, config: RougeConfig) -> None:
        """Measure and print a table."""
        print(rouge_table(rouge(config)))


def rouge_table(scores: Scores) -> str:
    """A row for each model, a column for each set: the mean over sampling seeds, in percent, and its deviation."""
    sets = list(next(iter(scores.values())))
    headings = [(name, "") for name in ("model", *sets, "mean of the sets")]
    rows = [[model, *(_cell(by_set[name]) for name in sets), _mean(by_set)] for model, by_set in scores.items()]
    return plain_table(headings, rows)


def _cell(values: list[float]) -> str:
    return f"{statistics.fmean(values):.2f}" + (f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else "")


def _mean(by_set: dict[str, list[float]]) -> str:
    return f"{statistics.fmean(statistics.fmean(values) for values in by_set.values()):.2f}"
