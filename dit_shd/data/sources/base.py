"""Images to be encoded, wherever they are: class folders, npz, Parquet, Hugging Face datasets.

A source has a fixed order and gives each image as it lies there; data/preprocessing.py makes pixels of it. One image
that cannot be had is a BrokenImage (it is counted and skipped), a source that cannot be read is a UserError.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from dit_shd.core.errors import UserError

MAX_PIXELS = 2**26
"""Of an image, decoded or scaled: more is refused before it takes memory."""


def check_area(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise BrokenImage(f"{width} x {height} pixels; wanted {MAX_PIXELS} at most")


T = TypeVar("T")
Raw = Path | bytes | np.ndarray
"""An image file, its bytes, or uint8 [y,x,c]."""
ALL = "all"
"""The one class where there are no labels."""
NO_LABELS = "there are no labels: all images are of one class"


class BrokenImage(ValueError):
    """One image that cannot be read; the message is the reason, the same at every run."""


class ImageSource(ABC):
    """Images with a class each.

    labels: int64 [n]; classes: their names; notes: what a user should know of it.
    """

    labels: np.ndarray
    classes: tuple[str, ...]
    notes: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def raw(self, number: int) -> Raw:
        """One image; cheapest in ascending order. Not for several threads at once.

        Raises:
            BrokenImage: there is none.
        """

    @abstractmethod
    def name(self, number: int) -> str:
        """What a user calls the image."""

    @abstractmethod
    def sha256(self) -> str:
        """Tells this source from another by names, sizes and labels; contents are not read."""


@dataclass(frozen=True)
class Asked:
    """What a user says of the images beside where they are; None: what is usual.

    split, subset: of several; image_column, label_column: of tables (and label files); follow_links: of a folder's
    links that lead out of it.
    """

    split: str | None = None
    subset: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    follow_links: bool = False


class Forward(Generic[T]):
    """Rows of something that is read forward only, as if they had numbers.

    Args:
        begin: the row at which reading for a row begins.
        read: the rows from there to the end.
    """

    def __init__(self, begin: Callable[[int], int], read: Callable[[int], Iterator[T]]):
        self._begin, self._read = begin, read
        self._next, self._rows = 0, None

    def __getitem__(self, number: int) -> T:
        begin = self._begin(number)
        if self._rows is None or not begin <= self._next <= number:
            self._next, self._rows = begin, self._read(begin)
        for row in self._rows:
            self._next += 1
            if self._next > number:
                return row
        raise IndexError(number)


def fingerprint(parts: Iterable[str | bytes]) -> str:
    """sha256 of some texts in order."""
    total = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else part.encode("utf-8", "surrogateescape")
        total.update(len(data).to_bytes(8, "little") + data)
    return total.hexdigest()


def checked_labels(labels: np.ndarray, names: tuple[str, ...] | None, where: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels as int64 [n] and the classes' names (numbers, where they have none).

    Raises:
        UserError: no images, a label below 0 or beyond the names.
    """
    if not len(labels):
        raise UserError(f"images: wanted at least one image, found none in '{where}'")
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise UserError(f"images: '{where}': wanted whole numbers as labels, found {labels.dtype} {list(labels.shape)}")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or (names is not None and high >= len(names)) or high >= 2**20:
        wanted = f"0 to {len(names) - 1}" if names is not None else "from 0 to a million"
        raise UserError(f"images: '{where}': wanted labels {wanted}, found {low} to {high}; is this split labelled?")
    return labels.astype(np.int64), names if names is not None else tuple(map(str, range(high + 1)))


def needs(package: str) -> UserError:
    return UserError(f'images: such data needs the package {package}; install it by: pip install "dit_shd[encode]"')
