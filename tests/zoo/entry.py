"""What an entry of the zoo is, and the small draws its inputs are made of: everything comes from the generator."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor


@dataclass(frozen=True)
class Entry:
    """A tiny model: the keywords of its constructor and, drawn anew at each call, the keywords of its forward."""

    config: dict[str, Any]
    inputs: Callable[[Generator], dict[str, Any]]
    older: dict[str, Any] = field(default_factory=dict)
    """More keywords of its forward, that older versions of diffusers want and newer ones do not know."""


def normal(g: Generator, *shape: int) -> Tensor:
    """Latents, embeddings, position ids: anything real."""
    return torch.randn(shape, generator=g)


def text(g: Generator, width: int = 12, length: int = 6) -> Tensor:
    """Two embedded texts [2, length, width]."""
    return normal(g, 2, length, width)


def steps(g: Generator, *shape: int) -> Tensor:
    """Integer timesteps in [0, 1000), one per sample."""
    return torch.randint(0, 1000, shape, generator=g)


def times(g: Generator, *shape: int) -> Tensor:
    """Continuous times in [0, 1), one per sample."""
    return torch.rand(shape, generator=g)


def indices(g: Generator, high: int, *shape: int) -> Tensor:
    """Integers in [0, high): class labels, token ids."""
    return torch.randint(0, high, shape, generator=g)


def padded(batch: int, length: int, padding: int = 1) -> Tensor:
    """A boolean mask [batch, length]; the last sample ends in `padding` masked tokens."""
    mask = torch.ones(batch, length, dtype=torch.bool)
    mask[-1, length - padding :] = False
    return mask


def grid(frames: int, height: int, width: int) -> Tensor:
    """Positions [frames * height * width, 3] of a raster of tokens."""
    axes = (torch.arange(n, dtype=torch.float32) for n in (frames, height, width))
    return torch.cartesian_prod(*axes)
