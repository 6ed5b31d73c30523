"""From raw images to what a network of photographs reads."""

import torch.nn.functional as F
from torch import Tensor


def resized(images: Tensor, side: int) -> Tensor:
    """uint8 [b, h, w, c] to float32 [b, c, side, side], whole numbers in 0..255: bicubic with antialias.

    Pillow's resize, but for its rounding between the two directions: off by 2 levels at most, on average by 0.2.
    """
    pixels = images.permute(0, 3, 1, 2).float()
    if pixels.shape[2:] == (side, side):
        return pixels
    return F.interpolate(pixels, (side, side), mode="bicubic", antialias=True).round().clamp(0, 255)
