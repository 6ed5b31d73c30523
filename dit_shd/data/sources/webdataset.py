"""WebDataset tars: the files of a sample have one name, KEY.jpg, KEY.txt or KEY.json, KEY.cls."""

import posixpath
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dit_shd.core.errors import UserError, error_line
from dit_shd.core.names import counted, printable
from dit_shd.data.sources import caption_cells
from dit_shd.data.sources.base import (
    NO_LABELS,
    BrokenImage,
    ChoiceError,
    ImageSource,
    Labelled,
    Selection,
    checked_labels,
    fingerprint,
    not_used,
    one_class,
)
from dit_shd.data.sources.classes import unused
from dit_shd.data.sources.listing import SUFFIXES, Listing
from dit_shd.data.sources.splits import DEFAULT, split_of

TAR = ".tar"
MOST_BYTES = 2**28
"""Of one file in a tar."""


@dataclass
class Sample:
    """Where the files of one sample are in their tar: offset and size by suffix."""

    tar: Path
    where: str
    """The tar's name to a user."""
    key: str
    files: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Tar and key."""
        return f"{self.where}/{self.key}"

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

    def image(self, given: str | None) -> str | None:
        """The suffix of its image: the given one, or KEY.jpg wherever KEY.depth.png stands; that if there is no other.

        Raises:
            UserError: None is given and it may be one of several, as KEY.jpg and KEY.png.
        """
        if given is not None:
            return given if given in self.images else None
        plain = [suffix for suffix in self.images if "." not in suffix] or self.images
        if len(plain) > 1:
            several = ", ".join(f"{printable(self.key)}.{suffix}" for suffix in plain[:3])
            line = f"{self.tar}: wanted one image for each key, which ends at the first dot of a name, found {several}"
            if "." in plain[0]:
                raise UserError(f"images: {line}")
            raise ChoiceError("image_column", line, " or ".join(plain), elsewhere="pack one image for each key")
        return plain[0] if plain else None

    @property
    def images(self) -> list[str]:
        """The suffixes of all of its images."""
        return [suffix for suffix in self.files if f".{suffix.rpartition('.')[2]}" in SUFFIXES]


def tars_of(listing: Listing) -> list[str]:
    """The tars of a folder without images."""
    return [] if listing.images else [path for path in listing.others if path.lower().endswith(TAR)]


def tars_of_split(tars: Sequence[str], split: str | None, where: str) -> list[str]:
    """The tars of one split, where the names of tars or of their folders are of several.

    Beside val-00000.tar, 00000.tar is of the training split, which is then taken if none is given.

    Args:
        tars: Their paths.
        split: The split, if one is wanted.
        where: The folder in the user's words, for errors.

    Raises:
        UserError: Several splits and none named, or a split that none is of.
    """

    def of(tar: str) -> str | None:
        parts = posixpath.splitext(tar)[0].split("/")
        return next((name for part in parts if (name := split_of(part, loosely=True))), None)

    splits = {tar: of(tar) for tar in tars}
    names = sorted({name for name in splits.values() if name})
    if names and DEFAULT not in names and None in splits.values():
        splits, split = {tar: name or DEFAULT for tar, name in splits.items()}, split or DEFAULT
    if split is None and len(names) > 1:
        raise ChoiceError("split", f"'{where}' has tars of splits ({', '.join(names)})")
    chosen = [tar for tar in tars if split is None or splits[tar] == (split_of(split) or split)]
    if not chosen:
        known = f"there are some of {', '.join(names)}" if names else "their names are of no split"
        raise UserError(f"split: '{where}' has no tars of {split}; {known}")
    return chosen


class TarImages(ImageSource):
    """The samples of tars, in their order.

    Args:
        tars: The files, by their names to a user.
        text: The source in the user's words, for errors.
        selection: Which images to take: its image_column is their suffix, as jpg of KEY.jpg; None for the only one.

    Raises:
        UserError: A damaged tar, two files of one name in it, several images of one key, or no image.
    """

    def __init__(self, tars: Mapping[str, Path], text: str, selection: Selection) -> None:
        image_column = selection.image_column
        notes: list[str] = []
        self._text = text
        samples = [sample for name, tar in tars.items() for sample in _index(tar, name, notes)]
        images = [sample.image(image_column and image_column.lower().lstrip(".")) for sample in samples]
        self._samples = [sample for sample, image in zip(samples, images) if image is not None]
        self._suffixes = [image for image in images if image is not None]
        if not self._samples:
            wanted = "images" if image_column is None else f"images KEY.{image_column} (image_column)"
            raise UserError(f"images: wanted {wanted} in the tars of '{text}', found none")
        try:
            self.labels, self.classes, remarks = self._labels(text)
        except UserError as error:
            if selection.needs_labels:
                raise
            self.labels, self.classes, remarks = *one_class(len(self._samples)), [not_used(error)]
        self.notes = [*notes, *remarks]
        if len(samples) > len(self._samples):
            self.notes = [*self.notes, f"left out: {len(samples) - len(self._samples)} samples without an image"]

    def _labels(self, text: str) -> Labelled:
        unlabelled = [sample for sample in self._samples if "cls" not in sample.files]
        if len(unlabelled) == len(self._samples):
            folders = {posixpath.dirname(sample.key) for sample in self._samples}
            notes = [NO_LABELS]
            if len(folders) > 1:
                notes.append(f"{len(folders)} folders in tars are no classes; KEY.cls holds the class of a sample")
            return *one_class(len(self._samples)), notes
        if unlabelled:
            raise UserError(
                f"images: '{text}': wanted a .cls for every image or for none, found {len(unlabelled)} of "
                f"{len(self._samples)} without one ({unlabelled[0].name}, ...)"
            )
        try:
            numbers = np.array([int(sample.read("cls")) for sample in self._samples])
        except ValueError as error:
            raise UserError(
                f"images: '{text}': wanted a whole number in each .cls ({error_line(error, 80)})"
            ) from error
        labels, classes = checked_labels(numbers, None, text)
        return labels, classes, unused(labels, classes)

    def raw(self, number: int) -> bytes:
        """The encoded image."""
        return self._samples[number].read(self._suffixes[number])

    def name(self, number: int) -> str:
        """Tar and key."""
        return self._samples[number].name

    def sha256(self) -> str:
        """Hash of names and sizes, and of the labels."""
        lines = (f"{sample.where} {sample.key} {sorted(sample.files.items())}" for sample in self._samples)
        return fingerprint([*lines, self.labels.tobytes()])

    def texts(self, column: str | None) -> list[str | None]:
        """The caption of each sample: in KEY.txt, or in KEY.json, where alone a given column is.

        Raises:
            UserError: No KEY.json has the column.
        """
        broken: list[str] = []
        texts, notes = caption_cells.of_cells([self._captions(sample, column, broken) for sample in self._samples])
        self._add_notes([*notes, *caption_cells.unread(broken)])
        if column is not None and not any(texts) and not broken:
            raise UserError(f"caption_column: none of {len(texts)} images in '{self._text}' has {column} in KEY.json")
        return texts

    def _captions(self, sample: Sample, column: str | None, broken: list[str]) -> list[str]:
        texts: list[str] = []
        if "txt" in sample.files and column is None:
            texts = caption_cells.texts_of(sample.read("txt").decode("utf-8-sig", "replace"))
        if not texts and "json" in sample.files:
            try:
                texts = caption_cells.of_json(sample.read("json"), column)
            except (caption_cells.BrokenCaption, BrokenImage) as error:
                broken.append(f"{printable(sample.name)}.json: {error}")
        return texts


def _index(tar: Path, where: str, notes: list[str]) -> list[Sample]:
    """The samples of a tar; what is left out of it is added to the notes."""
    samples: dict[str, Sample] = {}
    links: list[str] = []
    try:
        with tarfile.open(tar, "r:") as archive:  # uncompressed, so that a sample is one read at its place
            for member in archive:
                folder, name = posixpath.split(member.name)
                key, _, suffix = name.partition(".")
                if member.issym() or member.islnk():
                    links.append(member.name)
                if member.isfile() and key and suffix:
                    sample = samples.setdefault(f"{folder}/{key}", Sample(tar, where, posixpath.join(folder, key)))
                    _add(sample, suffix.lower(), member)
            ended = _ended(archive)
    except UserError:
        raise
    except (tarfile.TarError, OSError, ValueError) as error:
        raise UserError(f"images: {tar}: not a readable tar ({error_line(error, 100)})") from error
    if links:
        notes.append(f"left out: links in {printable(where)}: {counted(links)}")
    if not ended:
        notes.append(f"{printable(where)} has no end mark: its writer leaves it out, or it was cut between two files")
    return list(samples.values())


def _add(sample: Sample, suffix: str, member: tarfile.TarInfo) -> None:
    if suffix in sample.files:
        raise UserError(
            f"images: {sample.tar}: holds {printable(member.name)} twice; wanted a key of its own for each sample"
        )
    sample.files[suffix] = member.offset_data, member.size


def _ended(archive: tarfile.TarFile) -> bool:
    """Whether a tar whose members have been read ends as it should, or right after its last member.

    Python's tarfile takes a damaged header, and the end mark of the first of two tars in one file, for the end.

    Raises:
        ValueError: Something else follows.
    """
    stream = archive.fileobj
    assert stream is not None
    stream.seek(archive.offset)
    first = True
    while block := stream.read(2**20):
        if first and len(block) < tarfile.BLOCKSIZE:
            raise ValueError("it is cut short")
        if block.strip(b"\0"):
            raise ValueError("something stands behind its end: a damaged header, or two tars in one file")
        first = False
    return not first
