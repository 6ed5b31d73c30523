"""Opening image files by their contents, not by their names; and remarks on them."""

import io
from collections.abc import Generator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "PPM")
"""Formats that are decoded, whatever a file's suffix; pillow's other decoders never see untrusted files."""
LOSSLESS = (".png", ".bmp", ".gif", ".ppm", ".pgm", ".pbm", ".pnm")
"""Suffixes of lossless formats."""
DEEP = "of 16 bits a channel, rounded to 8"
MISNAMED = "JPEG or lossy WebP by their contents, not by their names"
FRAMES = "of several frames, the first of which is taken"
TURNED = "with an EXIF rotation, which is ignored, as in ADM: turn their pixels if they lie on their side"
CLEAR = "with transparency, which is dropped, as in ADM: what is under it is seen"
PROFILE = "with a colour profile other than sRGB, which is ignored, as in ADM"
"""DEEP, MISNAMED, FRAMES, TURNED, CLEAR and PROFILE are remarks on an image."""
SRGB = ("c2", "urgb", "nrgb", "zrgb")
"""What small profiles of sRGB call themselves (Facebook's, Compact-ICC-Profiles'); others have sRGB in their name."""
END_OF_JPEG, LONGEST_PADDING = b"\xff\xd9", 64
"""The mark, and how many bytes may follow it."""
ORIENTATION, UPRIGHT = 0x0112, 1
"""The EXIF tag, and its value of an image that is stored as it is seen."""


@contextmanager
def opened(source: Path | bytes) -> Generator["ImageFile"]:
    """Open an image of one of FORMATS; it is decoded later."""
    from PIL import Image

    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as image:
        yield image


def is_deep(image: "ImageFile") -> bool:
    """Whether a PNG has 16 bits a channel and colour, of which pillow drops the low half; before it is decoded."""
    return image.format == "PNG" and image.mode in ("RGB", "RGBA") and str(image.tile[0][3]).endswith(";16B")


def rounded(image: "ImageFile", second: "ImageFile") -> np.ndarray:
    """Round an image that `is_deep` to 8 bits, value / 257: uint8 [y,x,c] with c = 3 or 4.

    Pillow decodes one half of each value, so the image is decoded twice: with the other byte order the low half is
    first.

    Args:
        image: The image, opened.
        second: The same image, opened a second time.
    """
    mode = str(image.tile[0][3])
    if mode == "LA;16B":  # four bytes a pixel, in their stored order
        image.tile = [(*image.tile[0][:3], "RGBA")]  # type: ignore[list-item]
        gray = np.array(image).astype(np.uint32)
        values = gray[..., [0, 0, 0, 2]] * 256 + gray[..., [1, 1, 1, 3]]
    else:
        second.tile = [(*second.tile[0][:3], mode.replace(";16B", ";16L"))]  # type: ignore[list-item]
        values = np.array(image).astype(np.uint32) * 256 + np.array(second)
    return ((values + 128) // 257).astype(np.uint8)


def remarks(image: "ImageFile", source: Path | bytes) -> tuple[str, ...]:
    """Remarks on an image for the user, before it is decoded."""
    lossless_name = isinstance(source, Path) and source.suffix.lower() in LOSSLESS
    conditions = [(DEEP, is_deep(image)), (MISNAMED, lossless_name and is_lossy(image, source))]
    conditions.append((FRAMES, getattr(image, "is_animated", False)))
    conditions.append((TURNED, is_turned(image)))
    conditions.append((CLEAR, image.has_transparency_data))
    conditions.append((PROFILE, has_profile(image)))
    return tuple(remark for remark, holds in conditions if holds)


def has_profile(image: "ImageFile") -> bool:
    """Whether an image has a colour profile that can be read and does not call itself sRGB."""
    profile = image.info.get("icc_profile")
    return isinstance(profile, bytes) and bool(profile) and _is_another(profile)


@lru_cache(maxsize=16)  # of many images it is one of a few
def _is_another(profile: bytes) -> bool:
    from PIL import ImageCms

    try:
        name = ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile))).strip().casefold()
    except Exception:  # a damaged one, which nobody applies
        return False
    return "srgb" not in name and name not in SRGB


def is_turned(image: "ImageFile") -> bool:
    """Whether an image's EXIF, if it is of a camera's format, says that it is to be turned or mirrored."""
    camera = image.format in ("JPEG", "MPO", "WEBP")  # pillow would decode a PNG to look for it
    return camera and image.getexif().get(ORIENTATION, UPRIGHT) != UPRIGHT


def is_lossy(image: "ImageFile", source: Path | bytes) -> bool:
    """Whether an image is JPEG, or WebP that is not lossless."""
    if image.format != "WEBP":
        return image.format in ("JPEG", "MPO")
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as stream:
        return _has_lossy_chunk(stream)


def ends_whole(image: "ImageFile", source: Path | bytes) -> bool:
    """Whether an image that can be opened and verified can surely be decoded: of PNG and JPEG that end as they are to.

    Pillow verifies all chunks of a PNG, and nothing of a JPEG, in which no data look like the mark at its end.
    """
    if image.format == "PNG":
        return True
    if image.format not in ("JPEG", "MPO"):
        return False
    with io.BytesIO(source) if isinstance(source, bytes) else source.open("rb") as stream:
        stream.seek(max(0, stream.seek(0, io.SEEK_END) - LONGEST_PADDING))
        return END_OF_JPEG in stream.read()


def _has_lossy_chunk(stream: IO[bytes]) -> bool:
    """Whether an image chunk of a WebP file is VP8 and not VP8L (RFC 9649); frames of an animation are inside ANMF."""
    stream.seek(12)
    while len(head := stream.read(8)) == 8:
        name, size = head[:4], int.from_bytes(head[4:], "little")
        if name in (b"VP8 ", b"VP8L"):
            return name == b"VP8 "
        stream.seek(16 if name == b"ANMF" else size + size % 2, io.SEEK_CUR)
    return False
