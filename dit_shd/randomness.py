"""Every random draw is a pure function of (seed, purpose, step, index).

There is no generator state to save: resuming, another number of processes, or replaying one batch draw the same
numbers again. Philox is counter-based (Salmon et al., SC 2011), so each tuple names its own independent stream.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def stream(seed: int, purpose: str, step: int = 0, index: int = 0) -> np.random.Generator:
    """The stream of numbers that belongs to one (seed, purpose, step, index)."""
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    key = np.frombuffer(digest[:16], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, step, index]))


def normal(seed: int, purpose: str, step: int, indices: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Standard normal noise [b, *shape] in float32, one stream for each sample index."""
    draws = [stream(seed, purpose, step, i).standard_normal(shape, dtype=np.float32) for i in indices]
    return torch.from_numpy(np.stack(draws))


def uniform(seed: int, purpose: str, step: int, indices: Sequence[int], shape: Sequence[int] = ()) -> Tensor:
    """Uniform numbers in [0, 1) [b, *shape] in float64, one stream for each sample index."""
    draws = [stream(seed, purpose, step, i).random(shape) for i in indices]
    return torch.from_numpy(np.asarray(draws))


def permutation(seed: int, purpose: str, epoch: int, count: int) -> np.ndarray:
    """The order of `count` things in one epoch."""
    return stream(seed, purpose, epoch).permutation(count)
