"""Convert checkpoints: MDTv2 and DiT, public files or training checkpoints, to model folders and back.

  dit-shd convert DiT-XL-2-256x256.pt dit_xl2            a folder for teacher=, sample, inspect
  dit-shd convert 0400000.pt dit weights=model heads=8   of a training checkpoint; heads of an unusual width
  dit-shd convert hub:facebook/DiT-XL-2-256 dit_xl2      diffusers' layout, from the hub (or a folder here)
  dit-shd convert runs/shd student.safetensors           and back, to the public code's names

No code in a file is ever run. Sizes are read from the tensors. What is written has a card with the licence it inherits.
SiT, REPA and other files of flow matching look like DiT's and predict velocity: they are refused without prediction=.
"""

from typing import ClassVar

from dit_shd.cli.commands import Command
from dit_shd.diffusion.sampled_run import words_of_run
from dit_shd.models.conversion import ConvertConfig, convert


class Convert(Command[ConvertConfig]):
    """Convert checkpoints to model folders and back."""

    config = ConvertConfig
    words: ClassVar = {"source": "FILE", "out": "OUT"}
    words_help = "a checkpoint file, model folder, run or hub:OWNER/NAME; and what to write"
    places: ClassVar = {"source": ("model", "FILE")}

    def run(self, config: ConvertConfig) -> None:
        print("\n".join(convert(config, words_of_run).lines))
