"""Captioned digits: real MNIST digits, one or two on a canvas of 56 x 56, each canvas with its caption in a text file.

    python experiments/captioned_digits/images.py OUT --count 20000 --split train

A caption says which digits there are and where ("two digits: four and seven", "a three at the left"), and half of the
time that a digit is thin, thick or slanted, if it is. OUT.prompts.txt has the captions alone, OUT/NUMBER.png and .txt
the canvases; OUT.json says what is on each canvas, for read.py, which scores samples; OUT.npz has the pictures in one
file.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from dit_shd.data.datasets.digits import DigitsDataset

SIDE, DIGIT, JITTER = 56, 28, 2
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
PLACES = {"": (14, 14), "left": (14, 0), "right": (14, 28), "top": (0, 14), "bottom": (28, 14)}
"""Row and column of a single digit's corner."""
PAIRS = {"side": ((14, 0), (14, 28)), "above": ((0, 14), (28, 14))}
"""Of two digits' corners: in one line, and one above the other."""
SHEAR = 0.35
"""Columns a row by which a digit leans, from which it is slanted."""


@dataclass(frozen=True)
class Canvas:
    """What a caption says: digits and their corners."""

    caption: str
    digits: list[int]
    corners: list[list[int]]


def shear(pixels: np.ndarray) -> float:
    """By how many columns a row a digit [28,28] leans to the right, from its second moments."""
    weights = pixels.astype(float) / pixels.sum()
    rows, columns = np.indices(pixels.shape)
    rows, columns = rows - (weights * rows).sum(), columns - (weights * columns).sum()
    return float(-(weights * rows * columns).sum() / (weights * rows**2).sum())


def adjectives(pixels: np.ndarray, ink: np.ndarray, draw: np.random.Generator) -> str:
    """Words that are true of a digit, each left out half of the time; ink: 30th and 70th percentile of the set's."""
    words = []
    mean = pixels.mean()
    if mean < ink[0] or mean > ink[1]:
        words.append("thin" if mean < ink[0] else "thick")
    if shear(pixels) > SHEAR:
        words.append("slanted")
    return "".join(f"{word} " for word in words if draw.random() < 0.5)


def make(count: int, split: str, seed: int) -> tuple[np.ndarray, list[Canvas]]:
    """Canvases uint8 [n,56,56] and what is on them."""
    data = DigitsDataset(split)
    pixels, labels = data.images()[..., 0], data.labels()
    ink = np.quantile(pixels.mean((1, 2)), [0.3, 0.7])
    draw = np.random.default_rng(seed)
    images, canvases = np.zeros((count, SIDE, SIDE), np.uint8), []
    for image in images:
        picked = draw.integers(len(labels), size=2 if draw.random() < 0.5 else 1)
        digits = [int(labels[i]) for i in picked]
        words = [adjectives(pixels[i], ink, draw) + NAMES[d] for i, d in zip(picked, digits)]
        if len(digits) == 2:
            arrangement = str(draw.choice(list(PAIRS)))
            corners = PAIRS[arrangement]
            joint = " and " if arrangement == "side" else " above "
            caption = "two digits: " + joint.join(words)
        else:
            place = str(draw.choice(list(PLACES)))
            corners = (PLACES[place],)
            article = "an" if words[0] == "eight" else "a"
            caption = f"{article} {words[0]}" + (f" at the {place}" if place else "")
        for i, (row, column) in zip(picked, corners):
            dy, dx = draw.integers(-JITTER, JITTER + 1, size=2)
            top, left = np.clip([row + dy, column + dx], 0, SIDE - DIGIT)
            patch = image[top : top + DIGIT, left : left + DIGIT]
            np.maximum(patch, pixels[i], out=patch)
        canvases.append(Canvas(caption, digits, [list(corner) for corner in corners]))
    return images, canvases


def main() -> None:
    """Write images and captions."""
    parser = argparse.ArgumentParser(description="Make captioned digits.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--split", default="train", choices=["train", "validation"])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    images, canvases = make(options.count, options.split, options.seed)
    options.out.mkdir(parents=True)
    for number, (image, canvas) in enumerate(zip(images, canvases)):
        Image.fromarray(image).convert("RGB").save(options.out / f"{number:06d}.png")
        (options.out / f"{number:06d}.txt").write_text(canvas.caption + "\n")
    np.savez_compressed(options.out.with_suffix(".npz"), np.repeat(images[..., None], 3, axis=-1))
    options.out.with_suffix(".json").write_text(json.dumps([asdict(canvas) for canvas in canvases]))
    options.out.with_suffix(".prompts.txt").write_text("".join(f"{canvas.caption}\n" for canvas in canvases))


if __name__ == "__main__":
    main()
