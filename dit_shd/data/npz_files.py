"""Headers of the arrays in npz files, whose sizes are checked before anything is read, and errors about such files."""

import contextlib
import math
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from dit_shd.core.errors import UserError
from dit_shd.core.file_kinds import file_kind

BROKEN_FILE = (OSError, EOFError, ValueError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What reading a damaged npz file raises."""
MAX_EXPANSION = 100
"""Largest ratio of an array's or a Parquet column's size to its compressed size (1 MiB at least)."""


@dataclass(frozen=True)
class NpyHeader:
    """The header of an array."""

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype
    end: int
    """Bytes before the data."""

    @property
    def file_size(self) -> int:
        """Bytes of header and data."""
        return self.end + math.prod(self.shape) * self.dtype.itemsize


def read_npy_header(stream: IO[bytes]) -> NpyHeader:
    """Read a header; the stream is then at the data.

    Raises:
        ValueError: Not an npy file.
    """
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return NpyHeader(*read(stream), stream.tell())


def read_checked_header(archive: zipfile.ZipFile, name: str) -> NpyHeader:
    """The header of an array in an npz file, which must agree with the size of that array.

    Raises:
        KeyError: There is no such array.
        ValueError: It is not an array, or has another size.
    """
    with archive.open(name) as stream:
        header = read_npy_header(stream)
    if header.file_size != archive.getinfo(name).file_size:
        raise ValueError(f"{name} is not as long as its header says")
    return header


def check_images(
    dtype: npt.DTypeLike, shape: tuple[int, ...], fortran_order: bool, name: str
) -> tuple[int, int, int, int]:
    """Refuse an array that holds no images; `name` is the array in errors.

    Returns:
        The shape (n, y, x, c).

    Raises:
        UserError: Not uint8 [n,y,x,c] with c = 1 or 3, empty, or in Fortran order.
    """
    if np.dtype(dtype).kind == "f" and len(shape) == 4:
        raise latents_error(name, dtype, shape)
    if len(shape) == 5:
        raise UserError(
            f"{name}: wanted images uint8 [n,y,x,c] with c = 1 or 3, found {dtype} {list(shape)}; videos are "
            "evaluated by their frames alone: numpy.concatenate(videos) are all, videos[:, 0] the first of each"
        )
    if dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3):
        raise UserError(
            f"{name}: wanted images uint8 [n,y,x,c] with c = 1 or 3, found {dtype} {list(shape)}; "
            "round to 0..255 and put the channels last"
        )
    if min(shape) < 1:
        raise UserError(f"{name}: wanted at least 1 image of at least 1 pixel, found shape {list(shape)}")
    if fortran_order:
        raise UserError(
            f"{name}: wanted an array in C order, found Fortran order; save numpy.ascontiguousarray(images)"
        )
    return shape[0], shape[1], shape[2], shape[3]


def latents_error(name: str, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> UserError:
    """The error for an array of floats in place of images."""
    return UserError(
        f"{name}: wanted images uint8 [n,y,x,c] with c = 1 or 3, found {dtype} {list(shape)}; decode latents first "
        "(sample again without vae=null), round pixels to 0..255"
    )


def broken_file_error(name: str, error: BaseException, path: Path) -> UserError:
    """The error for an npz file that cannot be read; `name` is the file in the message."""
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
