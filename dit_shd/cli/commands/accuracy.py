"""Top-1 and top-5 of an image classifier, with their intervals: of all students of a run, or of any model of timm.

dit-shd accuracy runs/deit3_s_to_deit_ti_shd
dit-shd accuracy hub:timm/deit3_small_patch16_224.fb_in1k data='{name: images, path: imagenet, split: val}'
"""

from typing import ClassVar

from dit_shd.analysis.accuracies import AccuracyConfig, accuracies
from dit_shd.cli.commands import Command
from dit_shd.evaluation.accuracy import Accuracy
from dit_shd.reports.tables import plain_table


class AccuracyCommand(Command[AccuracyConfig]):
    """Measure the accuracy of an image classifier."""

    config = AccuracyConfig
    words: ClassVar = {"model": "MODEL"}
    words_help = "run, student, a folder of timm, or hub:OWNER/NAME"
    places: ClassVar = {"model": ("model", "MODEL")}

    def run(self, config: AccuracyConfig) -> None:
        """Measure and print a table."""
        print(accuracy_table(accuracies(config)))


def accuracy_table(by_model: dict[str, Accuracy]) -> str:
    """A row for each model: the share of images whose class is among the first k, in percent, and its interval."""
    ranks = list(next(iter(by_model.values())).correct)
    headings = [("model", ""), *((f"top-{k} %", "") for k in ranks), ("images", "")]
    rows = [[name, *(_cell(accuracy, k) for k in ranks), f"{accuracy.images:,}"] for name, accuracy in by_model.items()]
    return plain_table(headings, rows)


def _cell(accuracy: Accuracy, k: int) -> str:
    figures = accuracy.figures()
    share, low, high = (100 * figures[f"top{k}{end}"] for end in ("", "_low", "_high"))
    return f"{share:.2f} [{low:.2f}, {high:.2f}]"
