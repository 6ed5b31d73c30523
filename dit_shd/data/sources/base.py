"""Sources of images to be encoded: class folders, npz files, Parquet, Hugging Face datasets.

A source has a fixed order and returns each image in its stored form; data/preprocessing.py decodes it. An image that
cannot be read is a BrokenImage (it is counted and skipped), a source that cannot be read is a UserError.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np

from dit_shd.core.errors import UserError
from dit_shd.core.installation import install_command

FIRST = 8
"""Images whose contents identify a source, beside the names and sizes of all."""
MAX_PIXELS = 2**26
"""Of an image, decoded or scaled; larger ones are refused before they take memory."""


def check_area(width: int, height: int) -> None:
    """Refuse an image that is too large.

    Raises:
        BrokenImage: It has more than MAX_PIXELS.
    """
    if width * height > MAX_PIXELS:
        raise BrokenImage(f"{width} x {height} pixels; wanted {MAX_PIXELS} at most")


T = TypeVar("T")
Raw = Path | bytes | np.ndarray
"""An image file, its bytes, or uint8 [y,x,c]."""
ALL = "all"
"""The one class where there are no labels."""
NO_LABELS = "there are no labels: all images are of one class"


ONE_ALONE = "name a file of one, or a folder with one alone"
"""What to do about several splits or subsets where none can be chosen."""


class ChoiceError(UserError):
    """A source has several parts, of which a key of `dit-shd encode` chooses one.

    Args:
        key: That key.
        parts: What there is.
        choices: What the key may say.
        more: What else may be said.
        elsewhere: What to do where there is no such key.
    """

    def __init__(self, key: str, parts: str, choices: str = "NAME", more: str = "", elsewhere: str = ONE_ALONE):
        super().__init__(f"{key}: {parts}: which one? say {key}={choices}{more}")
        self.parts, self.elsewhere = parts, elsewhere


class BrokenImage(ValueError):
    """One image that cannot be read; the message is the reason, the same at every run."""


class ImageSource(ABC):
    """Images, each with a class, in a fixed order."""

    labels: np.ndarray
    """int64 [n]"""
    classes: tuple[str, ...]
    """Class names."""
    notes: Sequence[str] = ()
    """Remarks for the user."""
    captions: Sequence[str | None] | None = None
    """Of each image, where captions are read."""

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def raw(self, number: int) -> Raw:
        """One image in its stored form; fastest in ascending order. Not thread-safe.

        Raises:
            BrokenImage: It cannot be read.
        """

    @abstractmethod
    def name(self, number: int) -> str:
        """The image's name for a user."""

    @abstractmethod
    def sha256(self) -> str:
        """Hash of names, sizes and labels, which identifies the source; contents are not read."""

    def first_images_sha256(self) -> str:
        """Hash of the stored form of the first FIRST images: other pixels of the same sizes make another source."""
        return fingerprint(self._stored(number) for number in range(min(FIRST, len(self))))

    def all_images_sha256(self) -> str | None:
        """Hash of all contents, of sources that hold one of their own; None where they had to be read for it."""
        return None

    def _add_notes(self, notes: Iterable[str]) -> None:
        """Add remarks for the user, each once."""
        self.notes = [*dict.fromkeys([*self.notes, *notes])]

    def _stored(self, number: int) -> bytes:
        """An image as it is stored; nothing of one that cannot be read."""
        try:
            raw = self.raw(number)
        except BrokenImage:
            return b""
        return raw.read_bytes() if isinstance(raw, Path) else raw if isinstance(raw, bytes) else raw.tobytes()

    def texts(self, column: str | None) -> Sequence[str | None]:
        """The caption of each image, None where there is none.

        Args:
            column: The name of what holds them; None for a usual one.

        Raises:
            UserError: Such a source has no captions.
        """
        raise UserError("images: wanted a source with captions: a folder, Parquet, a dataset or tars, found an npz")


@dataclass(frozen=True)
class Selection:
    """Which part of a source to read; None means the usual one."""

    split: str | None = None
    subset: str | None = None
    image_column: str | None = None
    """Of tables; of tars the suffix of the images."""
    label_column: str | None = None
    """Of tables and label files."""
    follow_links: bool = False
    """Whether to follow a folder's links that lead out of it."""
    labels: bool = True
    """Whether labels are wanted: else a source whose labels cannot be read has one class."""

    @property
    def needs_labels(self) -> bool:
        """Whether labels that cannot be read are a fault: they are wanted, or their column is named."""
        return self.labels or self.label_column is not None


class SequentialRows(Generic[T]):
    """Rows of a stream that is read forward only, accessed by number.

    Args:
        begin: The row at which reading starts to reach a given row.
        read: The rows from a starting row to the end.
    """

    def __init__(self, begin: Callable[[int], int], read: Callable[[int], Iterator[T]]) -> None:
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
    """sha256 of texts in order."""
    digest = hashlib.sha256()
    for part in parts:
        data = part if isinstance(part, bytes) else part.encode("utf-8", "surrogateescape")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


Labelled = tuple[np.ndarray, tuple[str, ...], list[str]]
"""Labels int64 [n], names of classes and notes."""


def one_class(count: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels and the class of images without labels."""
    return np.zeros(count, np.int64), (ALL,)


def not_used(error: UserError) -> str:
    """The note on labels that cannot be read where none are needed."""
    return f"labels are not used, all images are of one class: {str(error).removeprefix('images: ')}"


def checked_labels(labels: np.ndarray, names: tuple[str, ...] | None, where: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels as int64 [n] and the classes' names (their numbers if they have none).

    Args:
        labels: Whole numbers [n].
        names: Class names.
        where: The source, for errors.

    Raises:
        UserError: No images, a label below 0 or beyond the names.
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


def missing_package(package: str) -> UserError:
    """The error for data that a package must read which is not installed."""
    return UserError(f"images: such data needs the package {package}; install it by: {install_command('encode')}")
