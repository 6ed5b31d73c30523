"""Captioned digits as a folder of pictures with a text file beside each (dit_shd/data/captioned_digits.py).

    python experiments/captioned_digits/images.py OUT --count 20000 --split train

OUT/NUMBER.png and .txt are the canvases, OUT.prompts.txt has the captions alone, OUT.json says what is on each canvas,
for read.py, which scores samples; OUT.npz has the pictures in one file.
"""

import argparse
from pathlib import Path

import numpy as np

from dit_shd.data.captioned_digits import captioned_digits, write_canvases, write_captioned, write_prompts


def main() -> None:
    """Write images and captions."""
    parser = argparse.ArgumentParser(description="Make captioned digits.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--split", default="train", choices=["train", "validation"])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    images, canvases = captioned_digits(options.count, options.split, options.seed)
    write_captioned(options.out, images, canvases)
    np.savez_compressed(options.out.with_suffix(".npz"), np.repeat(images[..., None], 3, axis=-1))
    write_canvases(options.out.with_suffix(".json"), canvases)
    write_prompts(options.out.with_suffix(".prompts.txt"), canvases)


if __name__ == "__main__":
    main()
