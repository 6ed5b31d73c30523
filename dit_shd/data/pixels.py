"""Pixels of a model as uint8 images, and images as one picture."""

from typing import TYPE_CHECKING, Literal

import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image


def to_uint8(pixels: Tensor, rounding: Literal["floor", "nearest"] = "floor") -> np.ndarray:
    """Pixels [b,c,y,x] in [-1, 1] as uint8 [b,y,x,c]: floor((x+1) 127.5) as MDT, or the nearest level as DiT."""
    levels = (pixels + 1) * 127.5
    levels = levels.round() if rounding == "nearest" else levels.floor()
    return levels.clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().cpu().numpy()


def grid(images: np.ndarray, columns: int = 10, gap: int = 2) -> "Image":
    """Images uint8 [n,y,x,c] as one PIL image, row by row on white.

    Args:
        images: The images.
        columns: Images in a row.
        gap: Pixels between images.
    """
    from PIL import Image

    n, y, x, c = images.shape
    rows = -(-n // columns)
    sheet = np.full((rows * (y + gap) + gap, columns * (x + gap) + gap, c), 255, dtype=np.uint8)
    for i, image in enumerate(images):
        top, left = gap + (i // columns) * (y + gap), gap + (i % columns) * (x + gap)
        sheet[top : top + y, left : left + x] = image
    return Image.fromarray(sheet[..., 0] if c == 1 else sheet)
