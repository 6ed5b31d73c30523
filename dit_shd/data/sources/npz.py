"""One npz: arr_0 uint8 [n,y,x,c] (c = 1 or 3) and, if there, arr_1 labels; read as a stream."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dit_shd.core.errors import UserError
from dit_shd.data.class_order import ordered
from dit_shd.data.image_sets import NpzImages
from dit_shd.data.sources.base import (
    MAX_PIXELS,
    NO_LABELS,
    ImageSource,
    SequentialRows,
    checked_labels,
    fingerprint,
    one_class,
)
from dit_shd.data.sources.classes import unused

CHUNK = 2**22
"""Number of bytes read at once."""


class NpzSource(ImageSource):
    """The images of an npz file, of which only a batch is in memory.

    Args:
        path: The file.

    Raises:
        UserError: Not such a file.
    """

    def __init__(self, path: Path) -> None:
        self._images = NpzImages(path, str(path))
        _, y, x, _ = self._images.shape
        if y * x > MAX_PIXELS:
            raise UserError(f"{path}: wanted images of up to {MAX_PIXELS} pixels, found {y} x {x}")
        labels = self._images.labels
        if labels is None:
            self.labels, self.classes, notes = *one_class(self._images.shape[0]), [NO_LABELS]
        else:
            self.labels, self.classes = checked_labels(labels, self._images.class_names, str(path))
            texts = self._images.class_names
            notes = [*unused(self.labels, self.classes), *(ordered(texts, str(path))[1] if texts else [])]
        self.notes = [*self._images.notes, *notes]
        self._rows = SequentialRows(lambda number: 0, self._read)

    def _read(self, _: int) -> Iterator[np.ndarray]:
        for batch in self._images.batches(max(1, CHUNK // math.prod(self._images.shape[1:]))):
            yield from batch.numpy()

    def raw(self, number: int) -> np.ndarray:
        """The image, uint8 [y,x,c]."""
        return self._rows[number]

    def name(self, number: int) -> str:
        """Array and row."""
        return f"arr_0[{number}]"

    def sha256(self) -> str:
        """Hash of the shape and the labels."""
        return fingerprint([str(self._images.shape), self.labels.tobytes()])

    def all_images_sha256(self) -> str:
        """Hash of the CRC-32 of arr_0, which the file's directory has."""
        return fingerprint([f"{self._images.shape} {self._images.crc32}"])
