"""The headers of npy and npz files, whose sizes are checked before anything is read."""

from typing import IO, Any

import numpy as np

from dit_shd.core.errors import UserError

UNFOLDS = 100
"""How many times its compressed size (1 MiB at least) an array may take in memory."""


def latents_found(name: str, dtype: Any, shape: tuple[int, ...]) -> UserError:
    """The error for an array of floats where images should be."""
    return UserError(
        f"{name}: wanted images uint8 [n, h, w, c] with c = 1 or 3, found {dtype} {list(shape)}; latents of dit-shd "
        "sample vae=null are to be decoded first (sample again without vae=null), pixels to be rounded to 0..255"
    )


def read_npy_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether it is in Fortran order, and type; the stream is then at the data."""
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(stream)


def npy_header(stream: IO[bytes], name: str) -> tuple[int, int, int, int]:
    """Read the header of images; the stream is then at the pixels."""
    shape, fortran, dtype = read_npy_header(stream)
    return check_npy_header(dtype, shape, fortran, name)


def check_npy_header(dtype: Any, shape: tuple[int, ...], fortran: bool, name: str) -> tuple[int, int, int, int]:
    if np.dtype(dtype).kind == "f" and len(shape) == 4:
        raise latents_found(name, dtype, shape)
    if dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3):
        raise UserError(
            f"{name}: wanted images uint8 [n, h, w, c] with c = 1 or 3, found {dtype} {list(shape)}; "
            "round to 0..255 and put the channels last"
        )
    if min(shape) < 1:
        raise UserError(f"{name}: wanted at least 1 image of at least 1 pixel, found shape {list(shape)}")
    if fortran:
        raise UserError(
            f"{name}: wanted an array in C order, found Fortran order; save numpy.ascontiguousarray(images)"
        )
    return shape[0], shape[1], shape[2], shape[3]
