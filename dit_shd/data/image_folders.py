"""Images in folders, tables and tars, by the rules of `dit_shd.data.sources`, and folders of a sampling's shards."""

import hashlib
import os
import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dit_shd.core import hashing
from dit_shd.core.errors import UserError
from dit_shd.core.names import counted, printable
from dit_shd.core.progress import progress_bar
from dit_shd.data import preprocessing
from dit_shd.data.broken_images import BrokenFileError, broken_error, opened_image
from dit_shd.data.image_sets import ImageSet
from dit_shd.data.image_shards import open_shards, read_labels
from dit_shd.data.npz_files import latents_error
from dit_shd.data.sources.base import NO_LABELS, BrokenImage, ImageSource
from dit_shd.data.sources.decoding import FORMATS, MISNAMED, ends_whole, is_deep, is_lossy, remarks, rounded
from dit_shd.data.sources.listing import scan
from dit_shd.data.sources.splits import SplitFolders

if TYPE_CHECKING:
    from PIL.Image import Image

SAMPLED = re.compile(r"\d{5,}_(\d{1,9})\.png")
"""Names of the sampler's files: the image's number, then its class or prompt."""
LOSSY = "JPEG or lossy WebP by their contents"


class StoredImages(ImageSet):
    """Images in their stored form, files or bytes, that are decoded as they are taken.

    Gray (c = 1) or RGB (c = 3), all of one size; or with a crop of any mode and size. Every image is checked before the
    first one is used: mode and size, and of png the checksums; where broken files are left out, all that can break.
    """

    _crop: tuple[int, ...] | None = None
    _lenient: bool = False
    """Whether broken files are left out."""
    _numbers: Sequence[int]
    """Of the stored images, those that are no broken files where such are left out."""

    @abstractmethod
    def _raw(self, number: int) -> Path | bytes:
        """One image as it is stored."""

    @abstractmethod
    def _named(self, number: int) -> tuple[str, str]:
        """One image in errors, and in notes."""

    @abstractmethod
    def _digest(self) -> str:
        """Hash of what is stored."""

    def _check(self, count: int) -> list[str]:
        """Find out the shape, which images are broken, and whether they are lossy.

        Returns:
            Notes on the images.

        Raises:
            UserError: A broken image (where they are left out: no other), or without a crop one of another shape or
                mode.
        """
        by_remark: dict[str, list[str]] = {}
        shapes: dict[int, tuple[int, int, int]] = {}
        broken: dict[str, UserError] = {}
        with progress_bar(count, "image", "checking images", delay=2) as bar:
            for number in range(count):
                try:
                    shapes[number] = self._checked_shape(number, by_remark)
                    self._check_alike(shapes, number)
                except BrokenFileError as error:
                    if not self._lenient:
                        raise
                    broken[self._named(number)[1]] = error
                bar.update()
        if not shapes:
            raise next(iter(broken.values()))
        self._numbers = list(shapes)
        self.shape = (len(shapes), *(self._crop or next(iter(shapes.values()))))  # type: ignore[assignment]
        self.lossy = LOSSY in by_remark
        notes = [f"of {len(shapes)} images {counted(files)} are {remark}" for remark, files in by_remark.items()]
        return [f"left out: {counted([*broken])} of {count}, broken files", *notes] if broken else notes

    def _check_alike(self, shapes: Mapping[int, tuple[int, int, int]], number: int) -> None:
        first = next(iter(shapes))
        if shapes[number] != shapes[first] and self._crop is None:
            raise UserError(
                f"{printable(self._named(number)[0])}: wanted (y, x, c) = {shapes[first]} like "
                f"{printable(Path(self._named(first)[1]).name)}, found {shapes[number]}; images of one set must "
                "have one shape (a reference of any shapes: crop=true; statistics: size=N)"
            )

    def _checked_shape(self, number: int, by_remark: dict[str, list[str]]) -> tuple[int, int, int]:
        """(y, x, c) of an image, without its pixels; remarks on it are added to `by_remark`."""
        where, name = self._named(number)
        with opened_image(raw := self._raw(number), where) as image:
            if image.mode not in ("L", "RGB") and self._crop is None:
                words = f"wanted a gray or RGB image of 8 bits, found mode {image.mode}; convert it first"
                raise UserError(f"{printable(where)}: {words}")
            image_remarks = [remark for remark in remarks(image, raw) if remark != MISNAMED]
            image_remarks += [LOSSY] if is_lossy(image, raw) and not self._shrinks(image) else []
            if self._crop is not None and preprocessing.is_small(image, self._crop):
                image_remarks.append(preprocessing.SMALL)
            (width, height), bands, surely_whole = image.size, len(image.getbands()), ends_whole(image, raw)
            image.verify()
        if self._lenient and not surely_whole:
            self._pixels(number)
        for remark in image_remarks:
            by_remark.setdefault(remark, []).append(name)
        return height, width, bands

    def _shrinks(self, image: "Image") -> bool:
        """Whether a crop makes an image smaller, so that what a lossy file of it has lost is averaged out."""
        return self._crop is not None and min(image.height / self._crop[0], image.width / self._crop[1]) > 1

    def _pixels(self, number: int) -> np.ndarray:
        """Uint8 [y,x,c]."""
        raw, where = self._raw(number), self._named(number)[0]
        if self._crop is not None:
            return _cropped(raw, self._crop, where)
        with opened_image(raw, where) as image:
            if is_deep(image):
                with opened_image(raw, where) as again:
                    return rounded(image, again)
            pixels = np.array(image)
        return pixels.reshape(*pixels.shape[:2], -1)

    def batches(self, size: int) -> Iterator[Tensor]:
        """Batches, decoded one by one."""
        for start in range(0, self.shape[0], size):
            yield torch.from_numpy(np.stack([self._pixels(n) for n in self._numbers[start : start + size]]))

    def take(self, indices: np.ndarray, size: int = 256) -> np.ndarray:
        """The images with these indices; no others are decoded."""
        return np.stack([self._pixels(self._numbers[int(index)]) for index in indices])

    def sha256(self) -> str:
        """Hash of names and contents, and of the crop."""
        digest = self._digest()
        return digest if self._crop is None else hashlib.sha256(f"{digest} {self._crop}".encode()).hexdigest()


class FolderImages(StoredImages):
    """The images below a folder, sorted by path. Links are followed.

    Args:
        path: The folder.
        name: The folder in errors and records.
        crop: Size (y, x, c) of the centre crop of images of any size; None for images of one size.
        lenient: Whether broken files are left out.

    Raises:
        UserError: No images, a broken image, or an image of another shape or mode.
    """

    def __init__(self, path: Path, name: str, crop: tuple[int, ...] | None = None, lenient: bool = False) -> None:
        self.path, self.name, self._folder, self._crop, self._lenient = path, name, path, crop, lenient
        listing = scan(path, follow_links=True)
        images = sorted(listing.images, key=lambda image: image.split(os.sep))
        regular = {image for image in images if (path / image).is_file()}
        irregular = [image for image in images if image not in regular]
        self._files = [path / image for image in images if image in regular]
        if not self._files:
            raise UserError(
                f"{name}: wanted a folder with images ({', '.join(FORMATS)}), found none in it ({listing.summary()})"
            )
        image_notes = self._check(len(self._files))
        notes = listing.notes()
        if irregular:
            notes.append(f"left out: {counted(irregular)}, broken links or no regular files")
        layout = SplitFolders.find({tuple(image.split(os.sep)[:-1]) for image in images})
        if layout is not None and len(layout.names) > 1:
            notes.append(f"the images are of several splits ({', '.join(map(printable, layout.names))}), all are taken")
        self.notes = [*notes, *image_notes]

    @property
    def prompt_numbers(self) -> np.ndarray | None:
        """Of the names of a sampler's files; of any others None."""
        matches = [SAMPLED.fullmatch(self._files[number].name) for number in self._numbers]
        numbers = [int(match[1]) for match in matches if match is not None]
        return np.array(numbers) if len(numbers) == len(matches) else None

    @property
    def file_names(self) -> list[str]:
        return [self._files[number].relative_to(self._folder).as_posix() for number in self._numbers]

    def _raw(self, number: int) -> Path:
        return self._files[number]

    def _named(self, number: int) -> tuple[str, str]:
        return str(self._files[number]), str(self._files[number].relative_to(self._folder))

    def _digest(self) -> str:
        return _sha256(self._folder, self._files)


class SourceImages(StoredImages):
    """The images of tables, tars or saved datasets that `dit-shd encode` reads, in its order.

    Args:
        source: The images.
        path: The file or folder; None for a dataset of the hub.
        name: The source in errors and records.
        crop: As in FolderImages.
        lenient: As in FolderImages.

    Raises:
        UserError: A broken image, or an image of another shape or mode.
    """

    def __init__(
        self,
        source: ImageSource,
        path: Path | None,
        name: str,
        crop: tuple[int, ...] | None = None,
        lenient: bool = False,
    ) -> None:
        self.path, self.name, self._source, self._crop, self._lenient = path, name, source, crop, lenient
        image_notes = self._check(len(source))
        self.notes = [*(note for note in source.notes if NO_LABELS not in note), *image_notes]

    def _raw(self, number: int) -> Path | bytes:
        try:
            raw = self._source.raw(number)
        except BrokenImage as error:
            raise broken_error(self._source.name(number), error) from error
        assert not isinstance(raw, np.ndarray), "an npz is read by NpzImages"
        return raw

    def _named(self, number: int) -> tuple[str, str]:
        name = self._source.name(number)
        return f"{self.name}: {name}", name

    def _digest(self) -> str:
        if self.path is None:
            return self._source.sha256()
        files = [self.path] if self.path.is_file() else sorted(file for file in self.path.rglob("*") if file.is_file())
        return _sha256(self.path.parent if self.path.is_file() else self.path, files)


class ShardImages(ImageSet):
    """The finished shards of a sampling (NAME.npz.parts), which may still be going on.

    Args:
        path: The folder.
        name: The folder in errors and records.

    Raises:
        UserError: Nothing finished yet, or a half-written shard.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name, self._folder = path, name, path
        self._shards = open_shards(path)
        if self._shards.dtype != np.uint8:
            raise latents_error(name, self._shards.dtype, self._shards.shape)
        self.shape, self.settings = self._shards.shape, self._shards.settings
        self.labels = np.concatenate([read_labels(file) for file in self._shards.files])
        count, wanted = self.shape[0], self.settings.get("count", self.shape[0])
        self.notes = [f"{count:,} of {wanted:,} images, those that are drawn so far"] if count != wanted else []

    def batches(self, size: int) -> Iterator[Tensor]:
        """Batches across the borders of shards."""
        pending = np.empty((0, *self.shape[1:]), dtype=np.uint8)
        for images, _ in self._shards:
            pending = np.concatenate([pending, images])
            while len(pending) >= size:
                yield torch.from_numpy(pending[:size].copy())
                pending = pending[size:]
        if len(pending):
            yield torch.from_numpy(pending)

    def sha256(self) -> str:
        """Hash of names and contents of the shards."""
        return _sha256(self._folder, self._shards.files)


def _cropped(raw: Path | bytes, crop: tuple[int, ...], where: str) -> np.ndarray:
    """The centre crop uint8 [y,x,c] of an image of any size and mode.

    Raises:
        UserError: It cannot be decoded, or has colours where c = 1.
    """
    y, x, channels = crop
    try:
        colours, _ = preprocessing.pixels(raw, y if y == x else (y, x))
    except BrokenImage as error:
        raise broken_error(where, error) from error
    if channels == 3:
        return colours
    if (colours != colours[..., :1]).any():
        raise UserError(f"{printable(where)}: wanted a gray image like the samples, found colours")
    return colours[..., :1]


def _sha256(folder: Path, files: Sequence[Path]) -> str:
    """Hash of the names and contents of files below a folder."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(os.fsencode(f"{file.relative_to(folder).as_posix()} {hashing.sha256(file)}\n"))
    return digest.hexdigest()
