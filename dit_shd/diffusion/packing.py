"""Latents as tokens, the way transformers of FLUX's kind are given them: patches of 2 x 2, row by row."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

SIDE = 2
"""Of a patch."""


def pack(x: Tensor) -> Tensor:
    """Tokens [b, y x / 4, 4c] of latents [b,c,y,x]."""
    return pixel_unshuffle(x, SIDE).flatten(2).transpose(1, 2)


def unpack(tokens: Tensor, like: Tensor) -> Tensor:
    """Latents [b,c,y,x] of tokens [b, y x / 4, 4c].

    Args:
        tokens: As `pack` makes them.
        like: Latents of that height and width.
    """
    height, width = like.shape[-2:]
    return pixel_shuffle(tokens.transpose(1, 2).unflatten(2, (height // SIDE, width // SIDE)), SIDE)


def places(x: Tensor) -> Tensor:
    """What FLUX's rotary embedding is given of each token [y x / 4, 3]: 0, its row and its column."""
    height, width = x.shape[-2] // SIDE, x.shape[-1] // SIDE
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).flatten(0, 1).to(x)


class Packed:
    """What adapters of such transformers have in common; a class is one of these and an Adapter."""

    example_tokens: ClassVar[int] = 512

    def channels(self, settings: Mapping[str, Any]) -> int:
        return settings["in_channels"] // SIDE**2

    def multiple(self, settings: Mapping[str, Any]) -> int:
        return SIDE

    def text_widths(self, settings: Mapping[str, Any]) -> tuple[int, int | None]:
        return settings["joint_attention_dim"], None

    def prediction(self, output: Tensor, x: Tensor) -> Tensor:
        return unpack(output, x)
