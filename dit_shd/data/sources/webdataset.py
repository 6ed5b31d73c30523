"""WebDataset tars: the files of a sample have one name, KEY.jpg, KEY.txt or KEY.json, KEY.cls."""

import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dit_shd.core.errors import UserError, error_line
from dit_shd.data.sources import caption_cells
from dit_shd.data.sources.base import ALL, NO_LABELS, BrokenImage, ImageSource, checked_labels, fingerprint
from dit_shd.data.sources.listing import SUFFIXES, Listing

TAR = ".tar"
MOST_BYTES = 2**28
"""Of one file in a tar."""


@dataclass
class Sample:
    """Where the files of one sample are in their tar: offset and size by suffix."""

    tar: Path
    key: str
    files: dict[str, tuple[int, int]] = field(default_factory=dict)

    def read(self, suffix: str) -> bytes:
        """The content of one file.

        Raises:
            BrokenImage: It is too large, or the tar is cut short.
        """
        offset, size = self.files[suffix]
        if size > MOST_BYTES:
            raise BrokenImage(f"{size} bytes; wanted {MOST_BYTES} at most")
        with self.tar.open("rb") as stream:
            stream.seek(offset)
            data = stream.read(size)
        if len(data) < size:
            raise BrokenImage("the tar is cut short")
        return data

    @property
    def image(self) -> str | None:
        """The suffix of its image: KEY.jpg, wherever KEY.depth.png stands; that one if there is no other."""
        images = [suffix for suffix in self.files if f".{suffix.rpartition('.')[2]}" in SUFFIXES]
        return min(images, key=lambda suffix: suffix.count("."), default=None)


def tars_of(listing: Listing) -> list[str]:
    """The tars of a folder without images."""
    return [] if listing.images else [path for path in listing.others if path.lower().endswith(TAR)]


class TarImages(ImageSource):
    """The samples of tars, in their order.

    Args:
        tars: The files.
        text: The source in the user's words, for errors.

    Raises:
        UserError: A damaged tar, or no image in them.
    """

    def __init__(self, tars: Sequence[Path], text: str) -> None:
        samples = [sample for tar in tars for sample in _index(tar)]
        self._samples = [sample for sample in samples if sample.image is not None]
        if not self._samples:
            raise UserError(f"images: wanted images in the tars of '{text}', found none")
        self.labels, self.classes, self.notes = self._labels(text)
        if len(samples) > len(self._samples):
            self.notes = [*self.notes, f"left out: {len(samples) - len(self._samples)} samples without an image"]

    def _labels(self, text: str) -> tuple[np.ndarray, tuple[str, ...], Sequence[str]]:
        unlabelled = [sample for sample in self._samples if "cls" not in sample.files]
        if len(unlabelled) == len(self._samples):
            return np.zeros(len(self._samples), np.int64), (ALL,), [NO_LABELS]
        if unlabelled:
            raise UserError(
                f"images: '{text}': wanted a .cls for every image or for none, found {len(unlabelled)} of "
                f"{len(self._samples)} without one ({unlabelled[0].tar.name}/{unlabelled[0].key}, ...)"
            )
        try:
            numbers = np.array([int(sample.read("cls")) for sample in self._samples])
        except ValueError as error:
            raise UserError(
                f"images: '{text}': wanted a whole number in each .cls ({error_line(error, 80)})"
            ) from error
        return *checked_labels(numbers, None, text), []

    def raw(self, number: int) -> bytes:
        """The encoded image."""
        sample = self._samples[number]
        return sample.read(sample.image or "")

    def name(self, number: int) -> str:
        """Tar and key."""
        sample = self._samples[number]
        return f"{sample.tar.name}/{sample.key}"

    def sha256(self) -> str:
        """Hash of names and sizes, and of the labels."""
        lines = (f"{sample.tar.name} {sample.key} {sorted(sample.files.items())}" for sample in self._samples)
        return fingerprint([*lines, self.labels.tobytes()])

    def texts(self, column: str | None) -> list[str | None]:
        return [self._caption(sample, column) for sample in self._samples]

    def _caption(self, sample: Sample, column: str | None) -> str | None:
        if "txt" in sample.files:
            return sample.read("txt").decode("utf-8-sig", "replace")
        if "json" in sample.files:
            return caption_cells.of_json(sample.read("json"), column, f"{sample.tar}/{sample.key}.json")
        return None


def _index(tar: Path) -> list[Sample]:
    samples: dict[str, Sample] = {}
    try:
        with tarfile.open(tar, "r:") as archive:  # uncompressed, so that a sample is one read at its place
            for member in archive:
                folder, name = os.path.split(member.name)
                key, _, suffix = name.partition(".")
                if member.isfile() and key and suffix:
                    sample = samples.setdefault(f"{folder}/{key}", Sample(tar, os.path.join(folder, key)))
                    sample.files[suffix.lower()] = member.offset_data, member.size
    except (tarfile.TarError, OSError, ValueError) as error:
        raise UserError(f"images: {tar}: not a readable tar ({error_line(error, 100)})") from error
    return list(samples.values())
