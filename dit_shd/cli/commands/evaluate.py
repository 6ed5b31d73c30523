"""Score samples against a reference: FID or FD, sFID, IS, KID, CMMD, CLIP score, precision, recall, density, coverage.

dit-shd evaluate runs/shd/samples_1000_seed0.npz reference=digits:validation features=digits
dit-shd evaluate samples.npz reference=VIRTUAL_imagenet256_labeled.npz resamples=100
dit-shd evaluate runs/shd_seed0/samples.npz reference=photos/ crop=true seeds=3
"""

from typing import ClassVar

from dit_shd.cli.commands import Command
from dit_shd.diffusion.teacher_sampling import teacher_command
from dit_shd.evaluation.evaluate import EvaluateConfig, evaluate
from dit_shd.reports.evaluation_page import write_evaluation_page


class Evaluate(Command[EvaluateConfig]):
    """Score samples against a reference."""

    config = EvaluateConfig
    words: ClassVar = {"samples": "SAMPLES..."}
    words_help = "npz or folder of images; several are scored one by one, with mean and spread"
    plugins: ClassVar = {"features": "dit_shd.evaluation.features", "metrics": "dit_shd.evaluation.metrics"}

    def run(self, config: EvaluateConfig) -> None:
        evaluate(config, write_page=write_evaluation_page, sampling=teacher_command)
