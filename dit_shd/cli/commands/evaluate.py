"""`dit-shd evaluate`: samples scored against a reference."""

import argparse

from dit_shd.cli.arguments import sorted_words


def run_evaluate(options: argparse.Namespace) -> None:
    from dit_shd.core.config import make
    from dit_shd.core.yaml_files import override
    from dit_shd.evaluation.evaluate import EvaluateConfig, evaluate

    files, assignments = sorted_words(options)
    config = make(EvaluateConfig, override({"samples": files}, assignments), "evaluate")
    evaluate(config, write_page=write_evaluation_page)
