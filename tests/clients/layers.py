"""A layer of attention, of which public code is written in the patterns beside it."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from .entry import sequence

H, D = 4, 8
E = H * D


def split(x: Tensor, parts: int = 3) -> tuple[Tensor, ...]:
    """[b,n,parts h d] -> parts of [b,h,n,d]"""
    return x.unflatten(2, (parts, H, D)).permute(2, 0, 3, 1, 4).unbind(0)


def merged(x: Tensor) -> Tensor:
    """[b,h,n,d] -> [b,n,h d]"""
    return x.transpose(1, 2).flatten(2)


def elsewhere(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return merged(F.scaled_dot_product_attention(q, k, v))


class Layer(nn.Module):
    """Self-attention; `how` calls it, `project` makes the output projection."""

    def __init__(self, how: Callable[..., Tensor] = elsewhere, project: Callable[[], nn.Module] | None = None):
        super().__init__()
        self.qkv, self.how = nn.Linear(E, 3 * E), how
        self.proj = nn.Linear(E, E) if project is None else project()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.proj(self.how(*split(self.qkv(x))))


X = sequence(2, 6, E)
