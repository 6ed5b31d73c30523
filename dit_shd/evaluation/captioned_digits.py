"""Whether pictures of digits show what their captions ask, as the shipped classifier reads them.

The classifier of 28 x 28 digits reads the places that a caption names. A picture is right if every digit is read as
asked, where it was asked, and there is no other ink: beside the digits the mean is below 2% of white.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dit_shd.data.captioned_digits import DIGIT, JITTER, Canvas
from dit_shd.evaluation.feature_set import Statistics
from dit_shd.evaluation.features.digits import DigitsFeatures
from dit_shd.evaluation.metrics.frechet import frechet_distance

EMPTY = 0.02
"""Share of white below which there is no ink."""


@dataclass(frozen=True)
class Reading:
    """What the classifier read in pictures."""

    digits: np.ndarray
    """Whether each digit is read as asked, bool [k]."""
    pictures: np.ndarray
    """Whether each picture is right, bool [n]."""
    features: Tensor
    """Of the patches at the captions' places [k,64]."""

    @property
    def share(self) -> float:
        """The share of pictures that are right."""
        return float(self.pictures.mean())

    @property
    def standard_error(self) -> float:
        """The standard error of that share."""
        return float(self.pictures.std() / len(self.pictures) ** 0.5)

    def distance(self, real: "Reading") -> float:
        """FD(digits) of the patches against those of real canvases."""
        return frechet_distance(Statistics.of(self.features), Statistics.of(real.features))


def read_pictures(images: np.ndarray, canvases: Sequence[Canvas]) -> Reading:
    """Read pictures of captions.

    Args:
        images: uint8 [n,56,56].
        canvases: What each picture's caption says.
    """
    patches, digits, beside = _patches(images, canvases)
    with torch.no_grad():
        features = DigitsFeatures().extract(torch.from_numpy(patches[..., None].copy()))
    assert features.logits is not None, "the classifier has classes"
    right = features.logits.argmax(1).numpy() == digits
    owner = np.repeat(np.arange(len(canvases)), [len(canvas.digits) for canvas in canvases])
    whole = np.array([right[owner == i].all() for i in range(len(canvases))]) & (beside < EMPTY)
    return Reading(right, whole, features.pooled)


def gray(images: np.ndarray) -> np.ndarray:
    """Pictures uint8 [n,y,x,c] without their colours [n,y,x]."""
    return images.mean(-1).round().astype(np.uint8)


def _patches(images: np.ndarray, canvases: Sequence[Canvas]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The patches [k,28,28] at the captions' places, their digits [k], and of each image [n] the ink beside them."""
    patches, digits, beside = [], [], []
    for image, canvas in zip(images, canvases, strict=True):
        rest = image.astype(float)
        for digit, (row, column) in zip(canvas.digits, canvas.corners):
            patches.append(image[row : row + DIGIT, column : column + DIGIT])
            digits.append(digit)
            top, left = max(row - JITTER, 0), max(column - JITTER, 0)
            rest[top : row + DIGIT + JITTER, left : column + DIGIT + JITTER] = 0
        beside.append(rest.mean() / 255)
    return np.stack(patches), np.array(digits), np.array(beside)
