"""Read samples of captioned digits: how often the picture shows what its caption asks.

    python experiments/captioned_digits/read.py SAMPLES.npz CANVASES.json [--out SCORES.json]

The shipped classifier of 28 x 28 digits (dit_shd/assets) reads the places that a caption names. A picture is right if
every digit is read as asked and there is no other ink: beside them the mean is below 2% of white. Prints the share of
digits and of pictures that are right with its standard error, and FD(digits) of the patches against those of --real, an
npz of canvases of the same captions.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from images import DIGIT
from torch import Tensor

from dit_shd.evaluation.feature_set import Statistics
from dit_shd.evaluation.features.digits import DigitsFeatures
from dit_shd.evaluation.metrics.frechet import frechet_distance

EMPTY = 0.02


def patches(images: np.ndarray, canvases: list[dict]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The patches [k,28,28] at the captions' places, their digits [k], and of each image [n] the ink beside them."""
    cut, digits, beside = [], [], []
    for image, canvas in zip(images, canvases):
        rest = image.astype(float)
        for digit, (row, column) in zip(canvas["digits"], canvas["corners"]):
            cut.append(image[row : row + DIGIT, column : column + DIGIT])
            digits.append(digit)
            rest[max(row - 2, 0) : row + DIGIT + 2, max(column - 2, 0) : column + DIGIT + 2] = 0
        beside.append(rest.mean() / 255)
    return np.stack(cut), np.array(digits), np.array(beside)


def read(images: np.ndarray, canvases: list[dict]) -> tuple[dict[str, float], Tensor]:
    """Shares of digits and pictures that are right, and the patches' features."""
    cut, digits, beside = patches(images, canvases)
    with torch.no_grad():
        features = DigitsFeatures().extract(torch.from_numpy(cut[..., None].copy()))
    right = (features.logits.argmax(1).numpy() == digits).astype(float)
    owner = np.repeat(np.arange(len(canvases)), [len(canvas["digits"]) for canvas in canvases])
    whole = np.array([right[owner == i].all() for i in range(len(canvases))]) & (beside < EMPTY)
    scores = {
        "digits_right": float(right.mean()),
        "pictures_right": float(whole.mean()),
        "standard_error": float(whole.std() / len(whole) ** 0.5),
        "pictures": len(whole),
    }
    return scores, features.pooled


def gray(file: Path) -> np.ndarray:
    """Images uint8 [n,y,x] of an npz."""
    with np.load(file) as data:
        images = data["arr_0"]
    return images.mean(-1).round().astype(np.uint8)


def main() -> None:
    """Score samples."""
    parser = argparse.ArgumentParser(description="Read samples of captioned digits.")
    parser.add_argument("samples", type=Path)
    parser.add_argument("canvases", type=Path)
    parser.add_argument("--real", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    canvases = json.loads(options.canvases.read_text())
    images = gray(options.samples)
    canvases = [canvases[i % len(canvases)] for i in range(len(images))]
    scores, features = read(images, canvases)
    if options.real is not None:
        real = gray(options.real)
        scores_real, features_real = read(real, canvases[: len(real)])
        scores["fd_digits"] = frechet_distance(Statistics.of(features), Statistics.of(features_real))
        scores["pictures_right_of_real"] = scores_real["pictures_right"]
    print(json.dumps(scores, indent=1))
    if options.out is not None:
        options.out.write_text(json.dumps(scores, indent=1) + "\n")


if __name__ == "__main__":
    main()
