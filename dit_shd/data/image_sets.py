"""Sets of images to be compared: an npz file, a folder, a dataset, or an array.

Images are raw uint8 [n,y,x,c], in a fixed order; a file is read batch by batch, never entirely.
"""

import hashlib
import math
import mimetypes
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from dit_shd.core import hashing
from dit_shd.core.errors import UserError
from dit_shd.core.json_files import read_object
from dit_shd.core.names import counted
from dit_shd.data.class_order import ordered
from dit_shd.data.image_prompts import MODEL, prompts_of
from dit_shd.data.npz_files import BROKEN_FILE, broken_file_error, check_images, read_npy_header

WIDEST, LONGEST = 2**17, 2**10
"""Largest size in bytes of one image's label in a file, and of a label that is a text."""

CRC = "arr_0_crc32"
"""In the sampler's settings the CRC-32 of arr_0, as the npz's directory has it."""
MOST_BYTES = 2**28
"""Of a file of settings, in which there may be a prompt for each image."""


def settings_file(path: Path) -> Path:
    """Where the sampler writes its settings: beside an npz same stem, .json; beside a folder FOLDER.json."""
    path = path.absolute()
    return path.with_suffix(".json") if path.is_file() else path.with_name(f"{path.name}.json")


def spread(n: int, count: int) -> np.ndarray:
    """`count` of the numbers below n, rising, int64: one at random (always the same) in each of as many equal parts.

    So they are of every class of a set that is sorted by class, and of one whose classes come in turn.
    """
    ends = np.arange(count + 1) * n // max(count, 1)
    return np.random.default_rng(0).integers(ends[:-1], ends[1:])


class ImageSet(ABC):
    """Images in a fixed order."""

    name: str
    """As given by the user."""
    shape: tuple[int, int, int, int]
    """(n, y, x, c)"""
    labels: np.ndarray | None = None
    """int64 [n]"""
    class_names: tuple[str, ...] | None = None
    """Of the labels, where a file has texts."""
    lossy: bool = False
    """Whether some of the files are JPEG or lossy WebP, at the size that they are used in."""
    notes: Sequence[str] = ()
    """What was left out, and remarks on the images."""
    path: Path | None = None
    """The file or folder, None if there is none."""
    settings: dict[str, Any] | None = None
    """The settings of the sampler that made them."""
    crc32: int | None = None
    """Of the pixels, where the file's directory has it."""

    @property
    def sidecar(self) -> dict[str, Any] | None:
        """The sampler's settings: known already, or in the file beside the images.

        Beside a folder may be anything of that name: they have the hash of the model, or prompts. Of an npz they may be
        of others that stood there: then its count or its checksum is another. The record of an evaluation is none.
        """
        if self.settings is not None:
            return self.settings
        content = self._beside()
        return None if content is None or self._of_others(content) else content

    @property
    def why_no_sidecar(self) -> str:
        """Why there are no settings, in words."""
        content = self._beside()
        if content is None or self.path is None:
            return "no .json beside the samples"
        return f"{settings_file(self.path)} is of other images ({self._of_others(content)})"

    def _beside(self) -> dict[str, Any] | None:
        if self.path is None:
            return None
        file = settings_file(self.path)
        content = read_object(file) if file.is_file() and file.stat().st_size < MOST_BYTES else None
        if content is None or "figures" in content:
            return None
        of_images = self.path.is_file() or MODEL in content or isinstance(content.get("prompts"), list | dict)
        return content if of_images else None

    def _of_others(self, content: dict[str, Any]) -> str:
        """Why settings are of other images; empty where nothing says so."""
        if content.get("count") not in (None, self.shape[0]):
            return f"of {content['count']}"
        recorded = content.get(CRC)
        return "of another checksum" if self.crc32 is not None and recorded not in (None, self.crc32) else ""

    @property
    def prompts(self) -> list[str] | None:
        """The prompt of each image, as its settings have it; else None."""
        return prompts_of(self.sidecar or {}, self.shape[0], self.prompt_numbers, self.file_names)

    @property
    def file_names(self) -> list[str] | None:
        """Of each image that is a file of a folder."""
        return None

    @property
    def prompt_numbers(self) -> np.ndarray | None:
        """The number of each image's prompt, int64 [n], where the sampler wrote it as the label."""
        return self.labels

    @abstractmethod
    def batches(self, size: int) -> Iterator[Tensor]:
        """Batches of images, uint8 [b,y,x,c] with b <= size, in order."""

    def take(self, indices: np.ndarray, size: int = 256) -> np.ndarray:
        """The images with these indices, in this order, uint8 [k,y,x,c]; `size` are read at a time."""
        images = np.empty((len(indices), *self.shape[1:]), dtype=np.uint8)
        for start, batch in zip(range(0, self.shape[0], size), self.batches(size)):
            in_batch = (indices >= start) & (indices < start + size)
            images[in_batch] = batch.numpy()[indices[in_batch] - start]
        return images

    @abstractmethod
    def sha256(self) -> str:
        """Hash of the file; of names and contents of a folder's images; of the pixels of an array."""


class HasImages(Protocol):
    """Images with something beside them, as `dit_shd.sample` returns them."""

    @property
    def images(self) -> np.ndarray:
        """Uint8 [n,y,x,c]."""
        ...


def pixels_of(images: object) -> object:
    """The array of what has one; anything else as it is."""
    array = getattr(images, "images", None)
    return array if isinstance(array, (np.ndarray, Tensor)) else images


class ArrayImages(ImageSet):
    """Images in memory, uint8 [n,y,x,c].

    Args:
        images: The array, or what has one.
        name: The images in errors and records.
        labels: Int64 [n].

    Raises:
        UserError: No such array.
    """

    def __init__(self, images: np.ndarray | Tensor | HasImages, name: str, labels: np.ndarray | None = None) -> None:
        array = pixels_of(images)
        if not isinstance(array, (np.ndarray, Tensor)):
            raise UserError(
                f"{name}: wanted an array uint8 [n,y,x,c], found {type(array).__name__}; numpy.stack makes one of a "
                "list of images, dit_shd.evaluate takes names of files and data"
            )
        if isinstance(array, Tensor):
            array = array.detach().cpu()
            array = (array.float() if array.is_floating_point() else array).numpy()  # NumPy has no bfloat16 to refuse
        self._pixels = array
        self.shape = check_images(self._pixels.dtype, self._pixels.shape, False, name)
        self.name, self.labels = name, labels

    def batches(self, size: int) -> Iterator[Tensor]:
        for start in range(0, len(self._pixels), size):
            yield torch.from_numpy(np.ascontiguousarray(self._pixels[start : start + size]))

    def sha256(self) -> str:
        return hashlib.sha256(np.ascontiguousarray(self._pixels).data).hexdigest()


class NpzImages(ImageSet):
    """arr_0 (uint8 images) and, if present, arr_1 (labels) of an npz file; nothing in it is ever unpickled.

    Labels: whole numbers of any type, [n] or [n,1], one-hot rows [n,classes], or texts, which are numbered in sorted
    order (by their numbers, if all are numbers). Anything else in arr_1 is left out, with a note: other programs write
    other arrays there.

    Args:
        path: The file.
        name: The file in errors and records.

    Raises:
        UserError: Not an npz file, no arr_0 or two, an arr_0 that is cut short or not uint8 [n,y,x,c], or
            two texts in arr_1 that are the same number.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name = path, name
        try:
            with zipfile.ZipFile(path) as archive:
                members = archive.namelist()
                if "arr_0.npy" not in members:
                    raise UserError(f"{name}: wanted images in arr_0, found {_instead(members)}")
                if members.count("arr_0.npy") > 1:
                    raise UserError(f"{name}: wanted one arr_0, found {members.count('arr_0.npy')}; write it again")
                with archive.open("arr_0.npy") as stream:
                    header = read_npy_header(stream)
                self.shape = check_images(header.dtype, header.shape, header.fortran_order, name)
                self.crc32 = archive.getinfo("arr_0.npy").CRC
                if archive.getinfo("arr_0.npy").file_size != header.file_size:
                    raise UserError(f"{name}: arr_0 is cut short: wanted {self.shape[0]} images; write the file again")
                if "arr_1.npy" in members:
                    labels, self.notes = _labels(archive, self.shape[0], name)
                    self.labels, self.class_names = (labels, None) if labels is None else _numbered(labels, name)
        except UserError:
            raise
        except BROKEN_FILE as error:
            raise broken_file_error(name, error, path) from error

    def batches(self, size: int) -> Iterator[Tensor]:
        n, y, x, c = self.shape
        assert self.path is not None
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open("arr_0.npy") as stream:
                read_npy_header(stream)
                for start in range(0, n, size):
                    count = min(size, n - start)
                    data = bytearray(stream.read(count * y * x * c))
                    yield torch.frombuffer(data, dtype=torch.uint8).reshape(count, y, x, c)
        except UserError:
            raise
        except BROKEN_FILE as error:
            raise broken_file_error(self.name, error, self.path) from error

    def sha256(self) -> str:
        assert self.path is not None
        return hashing.sha256(self.path)


def _instead(members: list[str]) -> str:
    """What an archive has in place of arr_0, and what to do."""
    if not members:
        return "an empty file; write them with numpy.savez(path, images)"
    if any((mimetypes.guess_type(member)[0] or "").startswith("image/") for member in members):
        return f"{counted(members)}; unpack it and give the folder"
    return f"{counted(members)}; write them with numpy.savez(path, images)"


def _labels(archive: zipfile.ZipFile, count: int, name: str) -> tuple[np.ndarray | None, list[str]]:
    """arr_1 as a class for each of `count` images, int64 or texts [n]; None and a note if it holds something else."""
    with archive.open("arr_1.npy") as stream:
        header = read_npy_header(stream)
        shape, dtype = header.shape, header.dtype
        if dtype.hasobject:
            raise UserError(
                f"{name}: wanted labels in arr_1 as whole numbers or texts, found Python objects, which are never "
                "unpickled; write it again with numpy.savez(path, images, labels)"
            )
        width = math.prod(shape[1:])
        note = f"arr_1 ({dtype} {list(shape)}) is not a label for each of {count:,} images and was left out"
        size, widest = width * dtype.itemsize, LONGEST if dtype.kind in "SU" else WIDEST
        if shape[:1] != (count,) or not 0 < size <= widest or (header.fortran_order and width > 1):
            return None, [note]
        if archive.getinfo("arr_1.npy").file_size != header.file_size:
            raise ValueError("arr_1 is cut short")
        blocks = []
        block = max(1, 2**22 // size)
        for start in range(0, count, block):
            rows = min(block, count - start)
            blocks.append(_classes(np.frombuffer(stream.read(rows * size), dtype).reshape(rows, width)))
    if any(classes is None for classes in blocks):
        return None, [note]
    return np.concatenate(blocks), []


def _numbered(labels: np.ndarray, where: str) -> tuple[np.ndarray, tuple[str, ...] | None]:
    """Labels as int64 [n], and the texts that they are of, if they are texts [n]."""
    if labels.dtype.kind not in "SU":
        return labels, None
    texts, numbers = np.unique(labels, return_inverse=True)
    names = [x.decode("utf-8", "backslashreplace") if isinstance(x, bytes) else str(x) for x in texts.tolist()]
    classes, _ = ordered(set(names), where)
    number = {name: label for label, name in enumerate(classes)}
    return np.array([number[name] for name in names], np.int64)[numbers], classes


def _classes(rows: np.ndarray) -> np.ndarray | None:
    """Rows [b,width] of labels as int64 or texts [b]; None if they are neither one value nor one-hot."""
    if rows.shape[1] > 1:
        hot = rows != 0 if rows.dtype.kind in "biuf" else np.zeros(rows.shape, bool)
        return hot.argmax(1) if (hot.sum(1) == 1).all() else None
    labels = rows[:, 0]
    if labels.dtype.kind == "f":
        integral = np.isfinite(labels) & (labels == np.floor(labels)) & (np.abs(labels) < 2**53)
        return labels.astype(np.int64) if integral.all() else None
    return labels.astype(np.int64) if labels.dtype.kind in "biu" else labels if labels.dtype.kind in "SU" else None
