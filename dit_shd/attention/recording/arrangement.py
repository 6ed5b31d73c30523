"""How the rows of a matrix lie in a tensor that a product takes, and unit rows that lie the same way."""

from typing import Literal

import torch
from torch import Tensor

Arrangement = Literal["last", "channels", "heads", "heads first"]
"""Features last [...,k]; as channels [b,k,...]; by head [...,h,d]; as attention gives them [b,h,n,d]."""


def rows_of(x: Tensor, arrangement: Arrangement) -> Tensor:
    """The rows [..., features] of a tensor."""
    if arrangement == "channels":
        return x.movedim(1, -1)
    if arrangement == "heads":
        return x.flatten(-2)
    return x.transpose(1, 2).flatten(-2) if arrangement == "heads first" else x


def unit_rows(like: Tensor, arrangement: Arrangement, first: int, k: int) -> Tensor:
    """K rows, each with a one in another of the features from `first` on, arranged as `like` is."""
    width = rows_of(like, arrangement).shape[-1]
    eye = torch.zeros(k, width, dtype=like.dtype, device=like.device)
    eye[torch.arange(k), first + torch.arange(k)] = 1
    if arrangement == "channels":
        return eye.t()[None].reshape(1, width, k, *[1] * (like.ndim - 3))
    if arrangement == "heads":
        return eye.view(*[1] * (like.ndim - 3), k, *like.shape[-2:])
    if arrangement == "heads first":
        return eye.view(1, k, like.shape[1], like.shape[3]).transpose(1, 2)
    return eye.view(*[1] * (like.ndim - 2), k, width)


def rows_of_result(y: Tensor, arrangement: Arrangement) -> Tensor:
    """The rows [...,e] of what a product makes of rows that are arranged this way."""
    return y.movedim(1, -1) if arrangement == "channels" else y
