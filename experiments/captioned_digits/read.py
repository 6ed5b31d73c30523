"""Read samples of captioned digits: how often the picture shows what its caption asks.

    python experiments/captioned_digits/read.py SAMPLES.npz CANVASES.json [--real CANVASES.npz] [--out FIGURES.json]

Prints the share of pictures and of digits that are right (dit_shd/evaluation/captioned_digits.py) and FD(digits) of the
patches against those of --real, an npz of canvases of the same captions; --out keeps them for a study.
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
    figures = {"pictures right, %": 100 * reading.share, "digits right, %": 100 * float(reading.digits.mean())}
    print(f"{len(images)} pictures; standard error of their share {100 * reading.standard_error:.1f}%")
    if options.real is not None:
        real = images_of(options.real)
        reading_real = read_pictures(real, canvases[: len(real)])
        figures["FD(digits)"] = reading.distance(reading_real)
        print(f"of the real canvases {100 * reading_real.share:.1f}% are right")
    print(json.dumps(figures, indent=1))
    if options.out is not None:
        options.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
