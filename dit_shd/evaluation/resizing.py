"""Raw images as the input of networks trained on photographs."""

import torch.nn.functional as F
from torch import Tensor


def resized(images: Tensor, side: int) -> Tensor:
    """Resize uint8 images [b,y,x,c] to float32 [b,c,side,side], integers in 0..255: bicubic with antialias.

    The same as Pillow's resize but for its rounding between the two directions: 2 levels at most, 0.2 on average.
    """
    pixels = images.permute(0, 3, 1, 2).float()
    if pixels.shape[2:] == (side, side):
        return pixels
    return F.interpolate(pixels, (side, side), mode="bicubic", antialias=True).round().clamp(0, 255)
