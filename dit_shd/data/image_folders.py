"""Folders of images, by the rule of `dit_shd.data.sources.listing`, and folders of a sampling's shards."""

import hashlib
import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dit_shd.core import hashing
from dit_shd.core.errors import UserError
from dit_shd.data.image_sets import ImageSet
from dit_shd.data.image_shards import open_shards
from dit_shd.data.npz_files import latents_error
from dit_shd.data.sources.decoding import DEEP, FORMATS, FRAMES, is_deep, is_lossy, opened, remarks, rounded
from dit_shd.data.sources.listing import counted, printable, scan
from dit_shd.data.sources.splits import SplitFolders

LOSSY = "JPEG or lossy WebP by their contents"


class FolderImages(ImageSet):
    """The images below a folder, sorted by path; gray (c = 1) or RGB (c = 3), all of one size. Links are followed.

    Every file is checked before the first one is used: mode and size, and of png the checksums.

    Args:
        path: The folder.
        name: The folder in errors and records.

    Raises:
        UserError: No images, a broken image, or an image of another shape or mode.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name, self._folder = path, name, path
        listing = scan(path, follow_links=True)
        images = sorted(listing.images, key=lambda image: image.split(os.sep))
        regular = {image for image in images if (path / image).is_file()}
        irregular = [image for image in images if image not in regular]
        self._files = [path / image for image in images if image in regular]
        if not self._files:
            raise UserError(
                f"{name}: wanted a folder with images ({', '.join(FORMATS)}), found none in it ({listing.summary()})"
            )
        by_remark: dict[str, list[str]] = {}
        first = _checked_shape(self._files[0], path, by_remark)
        for file in self._files[1:]:
            shape = _checked_shape(file, path, by_remark)
            if shape != first:
                raise UserError(
                    f"{printable(str(file))}: wanted (y, x, c) = {first} like {printable(self._files[0].name)}, "
                    f"found {shape}; images of one set must have one shape"
                )
        self.shape = (len(self._files), *first)
        self.lossy = LOSSY in by_remark
        notes = listing.notes()
        if irregular:
            notes.append(f"left out: {counted(irregular)}, broken links or no regular files")
        layout = SplitFolders.find({tuple(image.split(os.sep)[:-1]) for image in images})
        if layout is not None and len(layout.names) > 1:
            notes.append(f"the images are of several splits ({', '.join(map(printable, layout.names))}), all are taken")
        notes += [f"of {len(self._files)} images {counted(files)} are {remark}" for remark, files in by_remark.items()]
        self.notes = notes

    def batches(self, size: int) -> Iterator[Tensor]:
        """Batches, decoded one by one."""
        for start in range(0, len(self._files), size):
            yield torch.from_numpy(np.stack([_pixels(file) for file in self._files[start : start + size]]))

    def take(self, indices: np.ndarray, size: int = 256) -> np.ndarray:
        """The images with these indices; no others are decoded."""
        return np.stack([_pixels(self._files[i]) for i in indices])

    def sha256(self) -> str:
        """Hash of names and contents."""
        return _sha256(self._folder, self._files)


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
        labels = []
        for file in self._shards.files:
            with np.load(file, allow_pickle=False) as shard:
                labels.append(shard["arr_1"])
        self.labels = np.concatenate(labels)

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


def _checked_shape(file: Path, root: Path, by_remark: dict[str, list[str]]) -> tuple[int, int, int]:
    """(y, x, c) of an image file, without its pixels; remarks on it are added to `by_remark`.

    Raises:
        UserError: A broken file, or anything but gray or RGB of 8 bits, or RGB of 16.
    """
    with _opened(file) as image:
        if image.mode not in ("L", "RGB"):
            words = f"wanted a gray or RGB image of 8 bits, found mode {image.mode}; convert it first"
            raise UserError(f"{printable(str(file))}: {words}")
        image_remarks = [remark for remark in remarks(image, file) if remark in (DEEP, FRAMES)]
        image_remarks += [LOSSY] if is_lossy(image, file) else []
        for remark in image_remarks:
            by_remark.setdefault(remark, []).append(str(file.relative_to(root)))
        width, height = image.size
        image.verify()
        return height, width, len(image.getbands())


def _pixels(file: Path) -> np.ndarray:
    """Uint8 [y,x,c]."""
    with _opened(file) as image:
        if is_deep(image):
            with _opened(file) as again:
                return rounded(image, again)
        pixels = np.array(image)
    return pixels.reshape(*pixels.shape[:2], -1)


@contextmanager
def _opened(file: Path) -> Generator[Any]:
    from PIL import Image

    try:
        with opened(file) as image:
            yield image
    except UserError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        words = printable(" ".join(str(error).split()))[:200]
        raise UserError(
            f"{printable(str(file))}: wanted an image, found a broken file ({words}); write it again"
        ) from error


def _sha256(folder: Path, files: Sequence[Path]) -> str:
    """Hash of the names and contents of files below a folder."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(os.fsencode(f"{file.relative_to(folder).as_posix()} {hashing.sha256(file)}\n"))
    return digest.hexdigest()
