"""Image files opened, by their contents and not by their names: what is read, what of it is worth a note."""

import io
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "PPM")
"""What is decoded, whatever a file is called; other decoders of pillow are out of a stranger's reach."""
LOSSLESS = (".png", ".bmp", ".gif", ".ppm", ".pgm", ".pbm", ".pnm")
"""Suffixes that promise it."""
DEEP = "of 16 bits a channel, rounded to 8"
"""A remark on an image, as are the next ones."""
MISNAMED = "JPEG or lossy WebP by their contents, not by their names"
FRAMES = "of several frames, the first of which is taken"


@contextmanager
def opened(source: Path | bytes) -> Generator[Any]:
    """A PIL image of one of FORMATS; it is decoded later."""
    from PIL import Image

    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
        yield image


def is_deep(image: Any) -> bool:
    """A colour PNG of 16 bits a channel, of which pillow would cut off the low half. Ask before it is decoded."""
    return image.format == "PNG" and image.mode in ("RGB", "RGBA") and str(image.tile[0][3]).endswith(";16B")


def rounded(image: Any, again: Any) -> np.ndarray:
    """uint8 [h,w,c]: the nearest of 8 bits, value / 257, of an image that `is_deep`; c = 3 or 4.

    pillow gives one half of each value, so both are decoded: with the other byte order the low half comes first.

    Args:
        again: the same image, opened once more.
    """
    kind = image.tile[0][3]
    if kind == "LA;16B":  # four bytes a pixel, as they lie there
        image.tile = [(*image.tile[0][:3], "RGBA")]
        gray = np.array(image).astype(np.uint32)
        values = gray[..., [0, 0, 0, 2]] * 256 + gray[..., [1, 1, 1, 3]]
    else:
        again.tile = [(*again.tile[0][:3], kind.replace(";16B", ";16L"))]
        values = np.array(image).astype(np.uint32) * 256 + np.array(again)
    return ((values + 128) // 257).astype(np.uint8)


def remarks(image: Any, source: Path | bytes) -> tuple[str, ...]:
    """What a user should know of an image that is used; ask before it is decoded."""
    named = isinstance(source, Path) and source.suffix.lower() in LOSSLESS
    found = [(DEEP, is_deep(image)), (MISNAMED, named and is_lossy(image, source))]
    found.append((FRAMES, getattr(image, "is_animated", False)))
    return tuple(remark for remark, holds in found if holds)


def is_lossy(image: Any, source: Path | bytes) -> bool:
    """JPEG, or WebP that is not lossless."""
    if image.format != "WEBP":
        return image.format in ("JPEG", "MPO")
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as stream:
        return _has_lossy_chunk(stream)


def _has_lossy_chunk(stream: IO[bytes]) -> bool:
    """Whether an image chunk of a WebP file is VP8 and not VP8L (RFC 9649); frames of an animation are inside ANMF."""
    stream.seek(12)
    while len(head := stream.read(8)) == 8:
        name, size = head[:4], int.from_bytes(head[4:], "little")
        if name in (b"VP8 ", b"VP8L"):
            return name == b"VP8 "
        stream.seek(16 if name == b"ANMF" else size + size % 2, io.SEEK_CUR)
    return False
