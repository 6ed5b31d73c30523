"""`dit-shd convert`: checkpoints of MDTv2 and DiT, from and to the public code's files."""

import argparse

from dit_shd.cli.arguments import sorted_words
from dit_shd.core.errors import UserError

CONVERT = """Convert checkpoints: MDTv2 and DiT, public files or training checkpoints, to model folders and back.

  dit-shd convert DiT-XL-2-256x256.pt dit_xl2            a folder for teacher=, sample, inspect
  dit-shd convert 0400000.pt dit weights=model heads=8   of a training checkpoint; heads of an unusual width
  dit-shd convert hub:facebook/DiT-XL-2-256 dit_xl2      diffusers' layout, from the hub (or a folder here)
  dit-shd convert runs/shd student.safetensors           and back, to the public code's names

No code in a file is ever run. Sizes are read from the tensors. What is written has a card with the licence it inherits.
SiT, REPA and other files of flow matching, which look like DiT's and predict velocity, are refused."""


def run_convert(options: argparse.Namespace) -> None:
    from dit_shd.core.config import make
    from dit_shd.core.places import look
    from dit_shd.core.yaml_files import override

    names, assignments = sorted_words(options)
    if len(names) != 2:
        raise UserError(f"wanted two names, FILE and OUT, found {len(names)}: {' '.join(names)}")
    look(values := override({"source": names[0], "out": names[1]}, assignments), {"source": ("model", "FILE")})
    from dit_shd.models.conversion import ConvertConfig, convert

    config = make(ConvertConfig, values, "convert")
    print("\n".join(convert(config).lines))
