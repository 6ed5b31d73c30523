"""Shards: the finished batches of a sampling, one file each, until they are merged into one npz.

A shard is an npz file like the merged one (arr_0 uint8 [b,y,x,c], or latents float32 [b,c,y,x], and arr_1 labels
int64 [b]), uncompressed and named by the number of its first image. It is written in one step, and zip's checksums
detect damage.
"""

import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dit_shd.core.errors import UserError
from dit_shd.core.files import atomic_file
from dit_shd.core.places import expanded
from dit_shd.core.resumable import read_settings
from dit_shd.data.npz_files import read_checked_header

DTYPES = {np.dtype(np.uint8): "|u1", np.dtype(np.float32): "<f4"}
"""Types of images and of latents, by their names in npy headers."""


@dataclass(frozen=True)
class Shards:
    """The finished images of a sampling, which may still be going on."""

    folder: Path
    settings: dict[str, Any]
    """As in the .json beside a merged npz: the keys of SampleConfig that change images, and the model's sha256."""
    files: tuple[Path, ...]
    """In the order of the images; numbers may be missing while the sampling goes on."""
    shape: tuple[int, int, int, int]
    """(n, y, x, c) of all finished images together; (n, c, y, x) of latents."""
    dtype: np.dtype
    """Uint8 of images, float32 of latents."""

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Images (or latents) and labels int64 [b] of one shard after the other; only one is in memory."""
        return map(read_shard, self.files)


def open_shards(folder: Path) -> Shards:
    """The finished shards in a folder `NAME.npz.parts`; only their headers are read at once.

    Raises:
        UserError: Not such a folder, nothing in it yet, or a half-written shard. Iterating raises it for damage.
    """
    folder = Path(expanded(folder))
    settings = read_settings(folder)
    if settings is None:
        raise UserError(f"{folder}: wanted a folder of shards (NAME.npz.parts, which dit-shd sample makes)")
    files = shard_files(folder)
    if not files:
        raise UserError(f"{folder}: no shard is finished yet; wait, or give the sampling command again")
    shapes = [shard_shape(file) for file in files]
    if len({(shape[1:], dtype) for shape, dtype in shapes}) > 1:
        raise UserError(f"{folder}: wanted shards of one image size, found {sorted({s[1:] for s, _ in shapes})}")
    (_, *row), dtype = shapes[0]
    shape = (sum(shape[0] for shape, _ in shapes), *row)
    return Shards(folder, settings, tuple(files), shape, dtype)  # type: ignore[arg-type]


def shard_file(folder: Path, first: int) -> Path:
    """The file of the shard that begins with image `first`."""
    return folder / f"{first:09d}.npz"


def shard_files(folder: Path) -> list[Path]:
    """All finished shards, in the order of their images."""
    return sorted(folder.glob("[0-9]*.npz"))


def write_shard(file: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Write one shard in one step.

    Raises:
        UserError: It cannot be written, on a full disk above all; earlier shards are unchanged.
    """
    data = io.BytesIO()
    np.savez(data, arr_0=images, arr_1=labels)
    with atomic_file(file) as stream:
        stream.write(data.getbuffer())


def read_shard(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 [b,y,x,c] (or latents float32 [b,c,y,x]) and labels int64 [b]; every byte is checked.

    Raises:
        UserError: Half-written or damaged.
    """
    shard_shape(file)
    return _read(file, "arr_0.npy"), _read(file, "arr_1.npy")


def _read(file: Path, name: str) -> np.ndarray:
    try:
        with zipfile.ZipFile(file) as archive, archive.open(name) as stream:
            return np.lib.format.read_array(stream, allow_pickle=False)
    except Exception as error:  # a damaged file can fail in any way
        raise _damaged(file, error) from error


def read_labels(file: Path) -> np.ndarray:
    """Labels int64 [b] of a shard.

    Raises:
        UserError: Half-written, damaged, or no longer there.
    """
    return _read(file, "arr_1.npy")


def crc32_of(file: Path) -> int:
    """The CRC-32 of arr_0 of a merged npz, as its directory has it."""
    with zipfile.ZipFile(file) as archive:
        return archive.getinfo("arr_0.npy").CRC


def shard_shape(file: Path) -> tuple[tuple[int, int, int, int], np.dtype]:
    """(b, y, x, c), or (b, c, y, x) of latents, and dtype, by the header, which must agree with the file's size.

    Raises:
        UserError: Half-written or damaged.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            images, labels = (read_checked_header(archive, name) for name in ("arr_0.npy", "arr_1.npy"))
    except Exception as error:  # a damaged file can fail in any way
        raise _damaged(file, error) from error
    sound = images.dtype in DTYPES and labels.dtype == np.int64 and not images.fortran_order
    if not sound or len(images.shape) != 4 or labels.shape != images.shape[:1] or not images.shape[0]:
        raise _damaged(file, f"images {images.dtype} {images.shape}, labels {labels.dtype} {labels.shape}")
    return images.shape, images.dtype  # type: ignore[return-value]


def _damaged(file: Path, reason: object) -> UserError:
    if isinstance(reason, FileNotFoundError):
        return UserError(f"{file}: is no longer there; the sampling has ended and merged it: name its npz")
    words = " ".join(str(reason).split())[:120]
    return UserError(f"{file}: a half-written or damaged shard ({words}); the sampling command draws it again")


def merge(shards: Shards, file: Path) -> None:
    """Stream all shards into one npz file; only one is in memory at a time."""
    with atomic_file(file) as stream, zipfile.ZipFile(stream, "w") as archive:
        arrays = (("arr_0.npy", DTYPES[shards.dtype], shards.shape), ("arr_1.npy", "<i8", shards.shape[:1]))
        for name, dtype, shape in arrays:
            header = {"descr": dtype, "fortran_order": False, "shape": shape}
            with archive.open(name, "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, header)  # type: ignore[arg-type]
                for shard in shards.files:
                    member.write(_read(shard, name).data)
