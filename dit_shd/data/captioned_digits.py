"""Captioned digits: real MNIST digits, one or two on a canvas of 56 x 56, each canvas with its caption.

A caption says which digits there are and where ("two digits: four and seven", "a three at the left"), and half of the
time that a digit is thin, thick or slanted, if it is.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from dit_shd.core.files import atomic_folder, write_text
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
    """Row and column of each digit's corner, without the jitter."""


def captioned_digits(count: int, split: Literal["train", "validation"], seed: int) -> tuple[np.ndarray, list[Canvas]]:
    """Canvases and their captions.

    Args:
        count: How many.
        split: The split of the digits that they are made of.
        seed: The seed of everything that is drawn.

    Returns:
        uint8 [n,56,56], and what is on each.
    """
    data = DigitsDataset(split)
    pixels, labels = data.images()[..., 0], data.labels()
    ink = np.quantile(pixels.mean((1, 2)), [0.3, 0.7])
    draw = np.random.default_rng(seed)
    images, canvases = np.zeros((count, SIDE, SIDE), np.uint8), []
    for image in images:
        picked = draw.integers(len(labels), size=2 if draw.random() < 0.5 else 1)
        digits = [int(labels[i]) for i in picked]
        words = [_adjectives(pixels[i], ink, draw) + NAMES[digit] for i, digit in zip(picked, digits)]
        caption, corners = _arranged(words, draw)
        for i, (row, column) in zip(picked, corners):
            dy, dx = draw.integers(-JITTER, JITTER + 1, size=2)
            top, left = np.clip([row + dy, column + dx], 0, SIDE - DIGIT)
            patch = image[top : top + DIGIT, left : left + DIGIT]
            np.maximum(patch, pixels[i], out=patch)
        canvases.append(Canvas(caption, digits, [list(corner) for corner in corners]))
    return images, canvases


def write_captioned(folder: Path, images: np.ndarray, canvases: Sequence[Canvas]) -> None:
    """Write each canvas as NUMBER.png with its caption in NUMBER.txt; the folder is whole or not there.

    Args:
        folder: To be made.
        images: uint8 [n,56,56].
        canvases: What is on each.
    """
    with atomic_folder(folder.resolve()) as part:
        for number, (image, canvas) in enumerate(zip(images, canvases)):
            Image.fromarray(image).convert("RGB").save(part / f"{number:06d}.png")
            (part / f"{number:06d}.txt").write_text(f"{canvas.caption}\n", encoding="utf-8")


def write_prompts(file: Path, canvases: Sequence[Canvas]) -> None:
    """Write the captions, a line each."""
    write_text(file, "".join(f"{canvas.caption}\n" for canvas in canvases))


def write_canvases(file: Path, canvases: Sequence[Canvas]) -> None:
    """Write what captions say as JSON."""
    write_text(file, json.dumps([asdict(canvas) for canvas in canvases]))


def read_canvases(file: Path) -> list[Canvas]:
    """What captions say, as `write_canvases` wrote it."""
    return [Canvas(**entry) for entry in json.loads(file.read_text(encoding="utf-8"))]


def _arranged(words: Sequence[str], draw: np.random.Generator) -> tuple[str, Sequence[tuple[int, int]]]:
    """The caption of one or two digits, and their corners."""
    if len(words) == 2:
        arrangement = str(draw.choice(list(PAIRS)))
        joint = " and " if arrangement == "side" else " above "
        return "two digits: " + joint.join(words), PAIRS[arrangement]
    place = str(draw.choice(list(PLACES)))
    article = "an" if words[0] == "eight" else "a"
    return f"{article} {words[0]}" + (f" at the {place}" if place else ""), (PLACES[place],)


def _adjectives(pixels: np.ndarray, ink: np.ndarray, draw: np.random.Generator) -> str:
    """Words that are true of a digit, each left out half of the time; ink: 30th and 70th percentile of the set's."""
    words = []
    mean = pixels.mean()
    if mean < ink[0] or mean > ink[1]:
        words.append("thin" if mean < ink[0] else "thick")
    if _shear(pixels) > SHEAR:
        words.append("slanted")
    return "".join(f"{word} " for word in words if draw.random() < 0.5)


def _shear(pixels: np.ndarray) -> float:
    """The columns by which a digit [28,28] leans to the right in each row, from its second moments."""
    weights = pixels.astype(float) / pixels.sum()
    rows, columns = np.indices(pixels.shape)
    rows, columns = rows - (weights * rows).sum(), columns - (weights * columns).sum()
    return float(-(weights * rows * columns).sum() / (weights * rows**2).sum())
