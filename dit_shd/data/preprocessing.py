"""From an image as it lies somewhere to uint8 pixels of one size: decoding, and the ADM centre crop."""

import errno
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from dit_shd.core.errors import UserError
from dit_shd.data.sources.base import BrokenImage, Raw, check_area
from dit_shd.data.sources.decoding import FORMATS, is_deep, opened, remarks, rounded

MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
"""8 bits a channel or less, turned into RGB; deeper ones would be cut off, not scaled (of a deep gray no one knows the
scale; deep colours of a PNG are rounded)."""


MACHINE = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""Errors that are no image's fault: they end the command, which can be given again, and skip nothing."""


def pixels(raw: Raw, size: int) -> tuple[np.ndarray, tuple[str, ...]]:
    """The image's ADM centre crop, uint8 [size,size,3], and remarks on the image; errors as decoded."""
    image, noted = decoded(raw)
    return centre_crop(image, size), noted


def decoded(raw: Raw) -> tuple[Any, tuple[str, ...]]:
    """The image in RGB, as a PIL image, and remarks on it.

    Raises:
        BrokenImage: it cannot be decoded, or takes too much memory.
        UserError: the machine failed, not the image.
    """
    from PIL import Image

    try:
        if isinstance(raw, np.ndarray):
            return Image.fromarray(raw.squeeze(-1) if raw.shape[-1] == 1 else raw).convert("RGB"), ()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pillow's own about bombs and odd files: what counts is below
            with opened(raw) as image:
                check_area(*image.size)
                if image.mode not in MODES:
                    raise BrokenImage(f"mode {image.mode}; wanted 8 bits a channel")
                noted = remarks(image, raw)
                return _eight_bits(image, raw), noted
    except (BrokenImage, MemoryError):
        raise
    except Image.UnidentifiedImageError as error:
        raise BrokenImage(f"none of {', '.join(FORMATS)}") from error
    except Exception as error:  # a stranger's file can be wrong in any way
        if isinstance(error, OSError) and error.errno in MACHINE:
            raise UserError(f"{raw if isinstance(raw, Path) else 'an image'}: {error.strerror}; try again") from error
        words = re.sub(r"<[^>]*>|'[^']*'", "...", " ".join(str(error).split()))  # no addresses, no paths
        raise BrokenImage((words or type(error).__name__)[:120]) from error


def _eight_bits(image: Any, raw: Path | bytes) -> Any:
    """The image in RGB."""
    from PIL import Image

    if not is_deep(image):
        return image.convert("RGB")
    with opened(raw) as again:
        return Image.fromarray(rounded(image, again)).convert("RGB")


def centre_crop(image: Any, size: int) -> np.ndarray:
    """The crop of ADM (Dhariwal & Nichol 2021, guided-diffusion), uint8 [size,size,c] of a PIL image.

    Halve by box averages while the smaller side is 2 size or more, scale it to `size` bicubically, cut out the middle.
    """
    from PIL.Image import Resampling

    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Resampling.BOX)
    scale = size / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    check_area(width, height)
    array = np.asarray(image.resize((width, height), Resampling.BICUBIC))
    top, left = (height - size) // 2, (width - size) // 2
    return array[top : top + size, left : left + size]
