"""`dit-shd sample`: images of a trained model."""

import argparse
import os

from dit_shd.cli.arguments import values_of


def run_sample(options: argparse.Namespace) -> None:
    from dit_shd.core.config import make
    from dit_shd.core.places import look

    look(values := values_of(options, run=options.first), {"run": ("model", "RUN")})
    from dit_shd.diffusion.generation import sample_to_file, words
    from dit_shd.diffusion.sample_config import SampleConfig

    config = make(SampleConfig, values, "sample")
    out = sample_to_file(config)
    if int(os.environ.get("RANK", "0")):  # under a launcher one process speaks
        return
    print(words(config, out))
