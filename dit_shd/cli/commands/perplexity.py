"""Perplexity of language models on held-out text, a row each, and over the seeds of runs.

dit-shd perplexity runs/kjv_kd_seed0 runs/kjv_kd_seed1 runs/kjv_shd_seed0 runs/kjv_shd_seed1
dit-shd perplexity hub:OWNER/NAME data='{name: text, path: book.txt, tokenizer: hub:OWNER/NAME, split: all}'
"""

from collections.abc import Mapping
from typing import ClassVar

from dit_shd.analysis.perplexities import Figures, PerplexityConfig, over_seeds, perplexities
from dit_shd.cli.commands import Command
from dit_shd.reports.tables import HUGE, plain_table


class PerplexityCommand(Command[PerplexityConfig]):
    """Measure the perplexity of language models."""

    config = PerplexityConfig
    words: ClassVar = {"models": "MODELS..."}
    words_help = "runs, students, folders of transformers, or hub:OWNER/NAME"

    def run(self, config: PerplexityConfig) -> None:
        """Measure and print a table."""
        print(perplexity_table(perplexities(config)))


def perplexity_table(figures: Mapping[str, Figures]) -> str:
    """A row for each model and, where several runs differ in their seed alone, one for their mean and deviation."""
    headings = [(name, "") for name in ("model", "perplexity", "nats a token", "bits a byte", "tokens")]
    rows = [[name, *_cells(row, {})] for name, row in figures.items()]
    groups = {name: group for name, group in over_seeds(figures).items() if group[0] > 1}
    rows += [[f"{name} ({count} seeds)", *_cells(mean, spread)] for name, (count, mean, spread) in groups.items()]
    return plain_table(headings, rows)


def _cells(figures: Figures, spread: Figures) -> list[str]:
    def cell(key: str, digits: int) -> str:
        if key not in figures:
            return "-"
        style = ".3g" if abs(figures[key]) >= HUGE else f".{digits}f"  # of a model that has diverged
        deviation = f" ± {spread[key]:{style}}" if key in spread else ""
        return f"{figures[key]:{style}}{deviation}"

    return [cell("perplexity", 3), cell("nats", 4), cell("bits_per_byte", 4), f"{figures['tokens']:,.0f}"]
