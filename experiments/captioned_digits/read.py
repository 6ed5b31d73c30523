"""Read samples of captioned digits: how often the picture shows what its caption asks.

    python experiments/captioned_digits/read.py SAMPLES.npz CANVASES.json [--real CANVASES.npz] [--out SCORES.json]

Prints the share of digits and of pictures that are right (dit_shd/evaluation/captioned_digits.py) with its standard
error, and FD(digits) of the patches against those of --real, an npz of canvases of the same captions.
"""

import argparse
import json
from pathlib import Path

import numpy as np

from dit_shd.data.captioned_digits import read_canvases
from dit_shd.evaluation.captioned_digits import gray, read_pictures


def images_of(file: Path) -> np.ndarray:
    """Images uint8 [n,y,x] of an npz."""
    with np.load(file) as data:
        return gray(data["arr_0"])


def main() -> None:
    """Score samples."""
    parser = argparse.ArgumentParser(description="Read samples of captioned digits.")
    parser.add_argument("samples", type=Path)
    parser.add_argument("canvases", type=Path)
    parser.add_argument("--real", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    canvases = read_canvases(options.canvases)
    images = images_of(options.samples)
    reading = read_pictures(images, [canvases[i % len(canvases)] for i in range(len(images))])
    scores = {
        "digits_right": float(reading.digits.mean()),
        "pictures_right": reading.share,
        "standard_error": reading.standard_error,
        "pictures": len(images),
    }
    if options.real is not None:
        real = images_of(options.real)
        reading_real = read_pictures(real, canvases[: len(real)])
        scores["fd_digits"] = reading.distance(reading_real)
        scores["pictures_right_of_real"] = reading_real.share
    print(json.dumps(scores, indent=1))
    if options.out is not None:
        options.out.write_text(json.dumps(scores, indent=1) + "\n")


if __name__ == "__main__":
    main()
