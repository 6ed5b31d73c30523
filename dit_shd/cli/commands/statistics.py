"""`dit-shd statistics`: the statistics of a set of images, a reference for evaluate."""

import argparse

from dit_shd.cli.arguments import values_of


def run_statistics(options: argparse.Namespace) -> None:
    from dit_shd.core.config import make
    from dit_shd.evaluation.reference_statistics import StatisticsConfig, write_reference_statistics

    config = make(StatisticsConfig, values_of(options, images=options.first), "statistics")
    out = write_reference_statistics(config)
    print(f"done: {out}\nnext: dit-shd evaluate SAMPLES reference={out} features={config.features.name}")
