"""Images that cannot be opened or decoded, told by their names."""

import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dit_shd.core.errors import UserError, error_line
from dit_shd.core.names import printable
from dit_shd.data.sources.decoding import opened


class BrokenFileError(UserError):
    """A file that is no image, or not all of one."""


@contextmanager
def opened_image(raw: Path | bytes, where: str) -> Generator[Any]:
    """Open an image, in a block whose failures are those of the image.

    Args:
        raw: The image as it is stored.
        where: The image in errors.

    Raises:
        BrokenFileError: It cannot be opened, or not be decoded in the block.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pillow's of large images: their size is checked
            with opened(raw) as image:
                yield image
    except UserError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise broken_error(where, error) from error


def broken_error(where: str, error: Exception) -> BrokenFileError:
    """The error for an image that cannot be read, from a library's."""
    words = printable(error_line(error))
    return BrokenFileError(f"{printable(where)}: wanted an image, found a broken file ({words}); write it again")
