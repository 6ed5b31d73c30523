"""Write the statistics of a set of images, a reference for evaluate."""

import shlex
from typing import ClassVar

from dit_shd.cli.commands import Command
from dit_shd.core.yaml_files import words_of
from dit_shd.evaluation.reference_statistics import StatisticsConfig, write_reference_statistics


class Statistics(Command[StatisticsConfig]):
    """Write the statistics of a set of images."""

    config = StatisticsConfig
    words: ClassVar = {"images": "IMAGES"}
    words_help = "npz or folder of images"
    plugins: ClassVar = {"features": "dit_shd.evaluation.features"}

    def run(self, config: StatisticsConfig) -> None:
        out = write_reference_statistics(config)
        known = words_of({"reference": str(out), "features": config.features.as_value()})
        print(f"done: {out}\nnext: {shlex.join(['dit-shd', 'evaluate', 'SAMPLES', *known])}")
