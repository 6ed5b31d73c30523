"""Folders of images: png and jpg files, or the shards of a sampling."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dit_shd.core.errors import UserError
from dit_shd.data.image_sets import ImageSet, file_sha256
from dit_shd.data.image_shards import open_shards

SUFFIXES = (".png", ".jpg", ".jpeg")


class FolderImages(ImageSet):
    """The png and jpg files below a folder, sorted by path; gray (c = 1) or RGB (c = 3), all of one size.

    Every file is looked at before the first one is used: mode and size, and for png that it is whole.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name, self._folder = path, name, path
        self._files = sorted(f for f in path.rglob("*") if f.suffix.lower() in SUFFIXES and f.is_file())
        if not self._files:
            raise UserError(f"{name}: wanted a folder with png or jpg images, found none in it")
        self.lossy = any(f.suffix.lower() != ".png" for f in self._files)
        first = _look_at(self._files[0])
        for file in self._files[1:]:
            shape = _look_at(file)
            if shape != first:
                raise UserError(
                    f"{file}: wanted (h, w, c) = {first} like {self._files[0].name}, "
                    f"found {shape}; images of one set must have one shape"
                )
        self.shape = (len(self._files), *first)

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


def _look_at(file: Path) -> tuple[int, int, int]:
    """(h, w, c) of an image file, without its pixels.

    Raises:
        UserError: a broken file, or anything but 8-bit gray or RGB.
    """
    with _opened(file) as image:
        if image.mode not in ("L", "RGB"):
            raise UserError(f"{file}: wanted a gray or RGB image of 8 bits, found mode {image.mode}; convert it first")
        width, height = image.size
        image.verify()
        return height, width, len(image.getbands())


def _pixels(file: Path) -> np.ndarray:
    """uint8 [h, w, c]."""
    with _opened(file) as image:
        pixels = np.array(image)
    return pixels.reshape(*pixels.shape[:2], -1)


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    from PIL import Image

    try:
        with Image.open(file) as image:
            yield image
    except UserError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{file}: wanted an image, found a broken file ({error}); write it again") from error


def _sha256(folder: Path, files: Sequence[Path]) -> str:
    """Of the names and contents of some files below a folder."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.relative_to(folder).as_posix()} {file_sha256(file)}\n".encode())
    return digest.hexdigest()
