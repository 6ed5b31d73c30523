"""Sample images into one npz (arr_0 uint8 NHWC, arr_1 labels) and a grid.

dit-shd sample RUN                          of a class-conditional model
dit-shd sample RUN prompts=prompts.txt      of a text-to-image model, through its pipeline's own class
"""

from typing import ClassVar

from dit_shd.cli.commands import Command
from dit_shd.core.distributed import is_first_process
from dit_shd.diffusion.generation import sample_to_file, words
from dit_shd.diffusion.prompt_generation import sample_prompts
from dit_shd.diffusion.sample_config import SampleConfig


class Sample(Command[SampleConfig]):
    """Sample images of a trained model."""

    config = SampleConfig
    words: ClassVar = {"run": "RUN"}
    words_help = "run or model folder"
    places: ClassVar = {"run": ("model", "RUN")}

    def run(self, config: SampleConfig) -> None:
        out = sample_to_file(config) if config.prompts is None else sample_prompts(config)
        if is_first_process():  # of several under a launcher
            print(words(config, out))
