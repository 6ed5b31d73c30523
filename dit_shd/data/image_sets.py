"""Sets of images to be compared: an npz file, a folder, a dataset of ours, or an array.

Images are raw uint8 [n, h, w, c], in a fixed order; a file is read batch by batch, never as a whole.
"""

import abc
import contextlib
import hashlib
import math
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dit_shd.core.errors import UserError
from dit_shd.core.file_kinds import file_kind
from dit_shd.data.npz_files import check_npy_header, npy_header, read_npy_header

BROKEN_FILE = (OSError, EOFError, ValueError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error)
WIDEST, LONGEST = 2**17, 2**10
"""Bytes of one image's label in a file, and of one that is a text; wider ones are something else."""


class ImageSet(abc.ABC):
    """Images in order.

    name: as given by the user; shape: (n, h, w, c); labels: int64 [n] or None; lossy: some of the files are JPEG or
    lossy WebP; notes: what was left out, and what a user should know of the images;
    path: the file or folder, None where there is none; settings: what a sampler says it made them by.
    """

    name: str
    shape: tuple[int, int, int, int]
    labels: np.ndarray | None = None
    lossy: bool = False
    notes: Sequence[str] = ()
    path: Path | None = None
    settings: dict[str, Any] | None = None

    @abc.abstractmethod
    def batches(self, size: int) -> Iterator[Tensor]:
        """uint8 [b, h, w, c] with b <= size, in order."""

    def take(self, indices: np.ndarray, size: int = 256) -> np.ndarray:
        """uint8 [k, h, w, c]: the images with these numbers, in this order, read `size` at a time."""
        found = np.empty((len(indices), *self.shape[1:]), dtype=np.uint8)
        for start, batch in zip(range(0, self.shape[0], size), self.batches(size)):
            here = (indices >= start) & (indices < start + size)
            found[here] = batch.numpy()[indices[here] - start]
        return found

    @abc.abstractmethod
    def sha256(self) -> str:
        """Of the file; of names and contents of a folder's images; of the pixels of an array."""


class ArrayImages(ImageSet):
    """Images that are in memory, uint8 [n, h, w, c]."""

    def __init__(self, images: np.ndarray | Tensor, name: str, labels: np.ndarray | None = None) -> None:
        dtype = np.uint8 if images.dtype == torch.uint8 else images.dtype
        self.shape = check_npy_header(dtype, tuple(images.shape), False, name)
        self._pixels = images.cpu().numpy() if isinstance(images, Tensor) else images
        self.name, self.labels = name, labels

    def batches(self, size: int) -> Iterator[Tensor]:
        for start in range(0, len(self._pixels), size):
            yield torch.from_numpy(np.ascontiguousarray(self._pixels[start : start + size]))

    def sha256(self) -> str:
        return hashlib.sha256(np.ascontiguousarray(self._pixels).data).hexdigest()


class NpzImages(ImageSet):
    """arr_0 (uint8 images) and, if there, arr_1 (labels) of an npz file; nothing in it is ever unpickled.

    Labels: whole numbers of any type, [n] or [n, 1], one-hot rows [n, classes], or texts, which are numbered in sorted
    order. Anything else in arr_1 is left out, with a note: files of others keep other things there.

    Raises:
        UserError: not an npz file, no arr_0 or two, or an arr_0 that is cut short or not uint8 [n, h, w, c].
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        try:
            with zipfile.ZipFile(path) as archive:
                members = archive.namelist()
                if "arr_0.npy" not in members:
                    raise UserError(
                        f"{name}: wanted images in arr_0, found {', '.join(members) or 'an empty file'}; "
                        "write them with numpy.savez(path, images)"
                    )
                if members.count("arr_0.npy") > 1:
                    raise UserError(f"{name}: wanted one arr_0, found {members.count('arr_0.npy')}; write it again")
                with archive.open("arr_0.npy") as stream:
                    self.shape = npy_header(stream, name)
                    size = stream.tell() + math.prod(self.shape)
                if archive.getinfo("arr_0.npy").file_size != size:
                    raise UserError(f"{name}: arr_0 is cut short: wanted {self.shape[0]} images; write the file again")
                if "arr_1.npy" in members:
                    self.labels, self.notes = _labels(archive, self.shape[0], name)
        except UserError:
            raise
        except BROKEN_FILE as error:
            raise broken(name, error, path) from error

    def batches(self, size: int) -> Iterator[Tensor]:
        n, h, w, c = self.shape
        assert self.path is not None
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open("arr_0.npy") as stream:
                npy_header(stream, self.name)
                for start in range(0, n, size):
                    count = min(size, n - start)
                    data = bytearray(stream.read(count * h * w * c))
                    yield torch.frombuffer(data, dtype=torch.uint8).reshape(count, h, w, c)
        except UserError:
            raise
        except BROKEN_FILE as error:
            raise broken(self.name, error, self.path) from error

    def sha256(self) -> str:
        assert self.path is not None
        return file_sha256(self.path)


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def broken(name: str, error: BaseException, path: Path) -> UserError:
    """The error for an npz file that cannot be read."""
    with contextlib.suppress(OSError), path.open("rb") as stream:
        first = stream.read(6)
        if first == b"\x93NUMPY":
            return UserError(f"{name}: wanted an npz file, found a single array; write numpy.savez(path, images)")
        if not first.startswith(b"PK") and isinstance(error, zipfile.BadZipFile):
            return UserError(f"{name}: wanted an npz file written by numpy.savez, found {file_kind(path)}")
    reason = (str(error).splitlines() or [type(error).__name__])[0][:80]
    if reason == "File is not a zip file":
        reason = "its end is missing"
    if "pickle" in reason:
        reason = "of Python objects, which are never unpickled"
    return UserError(
        f"{name}: wanted an npz file written by numpy.savez, found a broken one ({reason}); write it again"
    )


def _labels(archive: zipfile.ZipFile, count: int, name: str) -> tuple[np.ndarray | None, list[str]]:
    """arr_1 as a class for each of `count` images, int64 [n]; None and a note if it is something else."""
    with archive.open("arr_1.npy") as stream:
        shape, fortran, dtype = read_npy_header(stream)
        if dtype.hasobject:
            raise UserError(
                f"{name}: wanted labels in arr_1 as whole numbers or texts, found Python objects, which are never "
                "unpickled; write it again with numpy.savez(path, images, labels)"
            )
        width = math.prod(shape[1:])
        other = [f"arr_1 ({dtype} {list(shape)}) is not a label for each of {count:,} images and was left out"]
        size, widest = width * dtype.itemsize, LONGEST if dtype.kind in "SU" else WIDEST
        if shape[:1] != (count,) or not 0 < size <= widest or (fortran and width > 1):
            return None, other
        if archive.getinfo("arr_1.npy").file_size != stream.tell() + count * size:
            raise ValueError("arr_1 is cut short")
        parts = []
        block = max(1, 2**22 // size)
        for start in range(0, count, block):
            rows = min(block, count - start)
            parts.append(_classes(np.frombuffer(stream.read(rows * size), dtype).reshape(rows, width)))
    if any(part is None for part in parts):
        return None, other
    found = np.concatenate(parts)
    return np.unique(found, return_inverse=True)[1] if found.dtype.kind in "SU" else found, []


def _classes(rows: np.ndarray) -> np.ndarray | None:
    """Rows [b, width] of labels as int64 or texts [b]; None if they are neither one value nor one-hot."""
    if rows.shape[1] > 1:
        hot = rows != 0 if rows.dtype.kind in "biuf" else np.zeros(rows.shape, bool)
        return hot.argmax(1) if (hot.sum(1) == 1).all() else None
    labels = rows[:, 0]
    if labels.dtype.kind == "f":
        whole = np.isfinite(labels) & (labels == np.floor(labels)) & (np.abs(labels) < 2**53)
        return labels.astype(np.int64) if whole.all() else None
    return labels.astype(np.int64) if labels.dtype.kind in "biu" else labels if labels.dtype.kind in "SU" else None
