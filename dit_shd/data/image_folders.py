"""Folders of images: what `dit_shd.data.sources.listing` takes for images, or the shards of a sampling."""

import hashlib
import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dit_shd.core.errors import UserError
from dit_shd.data.image_sets import ImageSet, file_sha256
from dit_shd.data.image_shards import open_shards
from dit_shd.data.npz_files import latents_found
from dit_shd.data.sources.decoding import DEEP, FORMATS, FRAMES, is_deep, is_lossy, opened, remarks, rounded
from dit_shd.data.sources.listing import counted, printable, scan
from dit_shd.data.sources.splits import SplitFolders

LOSSY = "JPEG or lossy WebP by their contents"


class FolderImages(ImageSet):
    """The images below a folder, sorted by path; gray (c = 1) or RGB (c = 3), all of one size. Links are followed.

    Every file is looked at before the first one is used: mode and size, and for png that it is whole.

    Raises:
        UserError: no images, a broken one, or one of another shape or kind.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name, self._folder = path, name, path
        found = scan(path, follow_links=True)
        images = sorted(found.images, key=lambda image: image.split(os.sep))
        regular = {image for image in images if (path / image).is_file()}
        odd = [image for image in images if image not in regular]
        self._files = [path / image for image in images if image in regular]
        if not self._files:
            raise UserError(
                f"{name}: wanted a folder with images ({', '.join(FORMATS)}), found none in it ({found.told()})"
            )
        noted: dict[str, list[str]] = {}
        first = _look_at(self._files[0], path, noted)
        for file in self._files[1:]:
            shape = _look_at(file, path, noted)
            if shape != first:
                raise UserError(
                    f"{printable(str(file))}: wanted (h, w, c) = {first} like {printable(self._files[0].name)}, "
                    f"found {shape}; images of one set must have one shape"
                )
        self.shape = (len(self._files), *first)
        self.lossy = LOSSY in noted
        notes = found.notes()
        if odd:
            notes.append(f"left out: {counted(odd)}, broken links or no regular files")
        layout = SplitFolders.find({tuple(image.split(os.sep)[:-1]) for image in images})
        if layout is not None and len(layout.names) > 1:
            notes.append(f"the images are of several splits ({', '.join(map(printable, layout.names))}), all are taken")
        notes += [f"of {len(self._files)} images {counted(files)} are {remark}" for remark, files in noted.items()]
        self.notes = notes

    def batches(self, size: int) -> Iterator[Tensor]:
        for start in range(0, len(self._files), size):
            yield torch.from_numpy(np.stack([_pixels(file) for file in self._files[start : start + size]]))

    def take(self, indices: np.ndarray, size: int = 256) -> np.ndarray:
        return np.stack([_pixels(self._files[i]) for i in indices])

    def sha256(self) -> str:
        return _sha256(self._folder, self._files)


class ShardImages(ImageSet):
    """The finished shards of a sampling (NAME.npz.parts), which may still be going on.

    Raises:
        UserError: nothing finished yet, or a half-written shard.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name, self._folder = path, name, path
        self._shards = open_shards(path)
        if self._shards.dtype != np.uint8:
            raise latents_found(name, self._shards.dtype, self._shards.shape)
        self.shape, self.settings = self._shards.shape, self._shards.settings
        labels = []
        for file in self._shards.files:
            with np.load(file, allow_pickle=False) as shard:
                labels.append(shard["arr_1"])
        self.labels = np.concatenate(labels)

    def batches(self, size: int) -> Iterator[Tensor]:
        waiting = np.empty((0, *self.shape[1:]), dtype=np.uint8)
        for images, _ in self._shards:
            waiting = np.concatenate([waiting, images])
            while len(waiting) >= size:
                yield torch.from_numpy(waiting[:size].copy())
                waiting = waiting[size:]
        if len(waiting):
            yield torch.from_numpy(waiting)

    def sha256(self) -> str:
        return _sha256(self._folder, self._shards.files)


def _look_at(file: Path, root: Path, noted: dict[str, list[str]]) -> tuple[int, int, int]:
    """(h, w, c) of an image file, without its pixels; what is worth a note goes to `noted`.

    Raises:
        UserError: a broken file, or anything but gray or RGB of 8 bits, or RGB of 16.
    """
    with _opened(file) as image:
        if image.mode not in ("L", "RGB"):
            words = f"wanted a gray or RGB image of 8 bits, found mode {image.mode}; convert it first"
            raise UserError(f"{printable(str(file))}: {words}")
        noteworthy = [remark for remark in remarks(image, file) if remark in (DEEP, FRAMES)]
        noteworthy += [LOSSY] if is_lossy(image, file) else []
        for remark in noteworthy:
            noted.setdefault(remark, []).append(str(file.relative_to(root)))
        width, height = image.size
        image.verify()
        return height, width, len(image.getbands())


def _pixels(file: Path) -> np.ndarray:
    """uint8 [h, w, c]."""
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
    """Of the names and contents of some files below a folder."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(os.fsencode(f"{file.relative_to(folder).as_posix()} {file_sha256(file)}\n"))
    return digest.hexdigest()
