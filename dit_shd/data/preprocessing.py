"""Images in any stored form to uint8 pixels of one size: decoding, and the ADM centre crop."""

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dit_shd.core.errors import UserError
from dit_shd.data.sources.base import BrokenImage, Raw, check_area
from dit_shd.data.sources.decoding import FORMATS, is_deep, opened, remarks, rounded

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
"""Modes of 8 bits a channel or less, which are converted to RGB. Deeper modes would be clipped, not scaled (the scale
of a deep gray is unknown; deep colours of a PNG are rounded)."""
SMALL = "smaller than the crop, and enlarged"
"""A remark on an image."""


def pixels(raw: Raw, size: int | tuple[int, int]) -> tuple[np.ndarray, tuple[str, ...]]:
    """The image's ADM centre crop of a side, or of height and width, uint8 [y,x,3], and remarks; errors as decoded."""
    image, image_remarks = decoded(raw)
    small = (SMALL,) if is_small(image, (size, size) if isinstance(size, int) else size) else ()
    return centre_crop(image, size), image_remarks + small


def is_small(image: "Image", size: Sequence[int]) -> bool:
    """Whether a crop of (height, width, ...) enlarges an image."""
    return image.height < size[0] or image.width < size[1]


def decoded(raw: Raw) -> "tuple[Image, tuple[str, ...]]":
    """The image in RGB, as a PIL image, and remarks on it.

    Raises:
        BrokenImage: It cannot be decoded, or takes too much memory.
        UserError: The machine failed, not the image.
    """
    from PIL import Image

    try:
        if isinstance(raw, np.ndarray):
            return Image.fromarray(raw.squeeze(-1) if raw.shape[-1] == 1 else raw).convert("RGB"), ()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pillow's warnings about bombs and odd files: checked below
            with opened(raw) as image:
                check_area(*image.size)
                if image.mode not in MODES:
                    raise BrokenImage(f"mode {image.mode}; wanted 8 bits a channel")
                image_remarks = remarks(image, raw)
                return _eight_bits(image, raw), image_remarks
    except (BrokenImage, MemoryError):
        raise
    except Image.UnidentifiedImageError as error:
        raise BrokenImage(f"none of {', '.join(FORMATS)}") from error
    except Exception as error:  # an untrusted file can be wrong in any way
        if isinstance(error, OSError) and error.errno is not None:  # of the machine, not the image
            raise UserError(f"{raw if isinstance(raw, Path) else 'an image'}: {error.strerror}; try again") from error
        words = re.sub(r"<[^>]*>|'[^']*'", "...", " ".join(str(error).split()))  # no addresses, no paths
        raise BrokenImage((words or type(error).__name__)[:120]) from error


def _eight_bits(image: "ImageFile", raw: Path | bytes) -> "Image":
    """The image in RGB."""
    from PIL import Image

    if not is_deep(image):
        return image.convert("RGB")
    with opened(raw) as second:
        return Image.fromarray(rounded(image, second)).convert("RGB")


def centre_crop(image: "Image", size: int | tuple[int, int]) -> np.ndarray:
    """The crop of ADM (Dhariwal & Nichol 2021, guided-diffusion), uint8 [y,x,c].

    Halve by box averages while the smaller side is 2 size or more, scale it to `size` bicubically, crop the middle. Of
    height and width: while both sides are twice as long, and so that the image just covers the crop.
    """
    from PIL.Image import Resampling

    rows, columns = (size, size) if isinstance(size, int) else size
    while min(image.width / columns, image.height / rows) >= 2:
        image = image.resize((image.width // 2, image.height // 2), Resampling.BOX)
    scale = max(columns / image.width, rows / image.height)
    width, height = round(image.width * scale), round(image.height * scale)
    check_area(width, height)
    array = np.asarray(image.resize((width, height), Resampling.BICUBIC))
    top, left = (height - rows) // 2, (width - columns) // 2
    return array[top : top + rows, left : left + columns]
