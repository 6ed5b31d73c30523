"""Every random draw is a pure function of (seed, purpose, step, index).

There is no generator state to save: a resumed run, another number of processes and the replay of one batch draw the
same numbers again. Philox is counter-based (Salmon et al., SC 2011), so each tuple has an independent stream.
"""

import hashlib
import random
import threading
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

_GLOBAL = threading.RLock()
"""Held while the global generators are somebody's: a prefetch thread mixes while the main thread draws a step again."""


def stream(seed: int, purpose: str, step: int = 0, index: int = 0) -> np.random.Generator:
    """The random stream of one (seed, purpose, step, index)."""
    return np.random.Generator(np.random.Philox(key=_key(seed, purpose), counter=[0, 0, step, index]))


@lru_cache
def _key(seed: int, purpose: str) -> np.ndarray:
    digest = hashlib.sha256(f"{seed}/{purpose}".encode()).digest()
    return np.frombuffer(digest[:16], dtype=np.uint64)


def normal(seed: int, purpose: str, step: int, indices: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Standard normal noise [b, *shape] in float32, one stream for each sample index."""
    draws = np.empty((len(indices), *shape), dtype=np.float32)
    for position, i in enumerate(indices):
        draws[position] = stream(seed, purpose, step, i).standard_normal(tuple(shape), np.float32)
    return torch.from_numpy(draws)


def uniform(seed: int, purpose: str, step: int, indices: Sequence[int], shape: Sequence[int] = ()) -> Tensor:
    """Uniform numbers in [0, 1) [b, *shape] in float64, one stream for each sample index."""
    draws = np.empty((len(indices), *shape))
    for position, i in enumerate(indices):
        draws[position] = stream(seed, purpose, step, i).random(tuple(shape))
    return torch.from_numpy(draws)


def permutation(seed: int, purpose: str, epoch: int, count: int) -> np.ndarray:
    """The order of `count` items in one epoch."""
    return stream(seed, purpose, epoch).permutation(count)


@contextmanager
def keyed_generators(seed: int, purpose: str, step: int, index: int = 0) -> Generator[None]:
    """Inside it a library that draws from the global generators of Python, numpy and torch (CPU) draws keyed numbers.

    The generators are left as they were found.
    """
    keys = _generator_keys(seed, purpose, step, index)
    with _GLOBAL:
        before = random.getstate(), torch.get_rng_state()
        random.seed(keys[0])
        torch.default_generator.manual_seed(keys[2])  # torch.manual_seed would seed the GPUs, too
        try:
            with keyed_numpy(seed, purpose, step, index):
                yield
        finally:
            random.setstate(before[0])
            torch.set_rng_state(before[1])


@contextmanager
def keyed_numpy(seed: int, purpose: str, step: int, index: int = 0) -> Generator[None]:
    """The same for numpy's generator alone: other threads may draw from torch's meanwhile, as a step's forward does."""
    with _GLOBAL:
        before = np.random.get_state()  # noqa: NPY002
        np.random.seed(_generator_keys(seed, purpose, step, index)[1])  # noqa: NPY002
        try:
            yield
        finally:
            np.random.set_state(before)  # noqa: NPY002


def _generator_keys(seed: int, purpose: str, step: int, index: int) -> list[int]:
    """Seeds for the generators of Python, numpy and torch."""
    return [int(key) for key in stream(seed, purpose, step, index).integers(2**32, size=3)]


def seed_torch(seed: int, purpose: str, step: int, index: int) -> None:
    """Seed torch's own generators, for draws of models and losses of others: their dropout, their torch.randn."""
    number = int(stream(seed, purpose, step, index).integers(2**62))
    # torch.manual_seed also seeds devices; where there are none it formats a stack each time
    (torch.manual_seed if torch.accelerator.is_available() else torch.default_generator.manual_seed)(number)


def kept_generators(device: torch.device) -> AbstractContextManager[None]:
    """The block in which torch's generators, of the CPU and of a device, are drawn from; restored after it."""
    devices = [] if device.type == "cpu" else [device]
    return torch.random.fork_rng(devices, device_type=device.type if devices else "cuda")


@dataclass(frozen=True)
class Draws:
    """Random draws for some positions (0 .. batch_size-1) of one step's global batch."""

    seed: int
    step: int
    positions: Sequence[int]
    batch_size: int
    """Samples in the step, over all processes."""

    def normal(self, purpose: str, shape: Sequence[int]) -> Tensor:
        """Standard normal noise [b, *shape] in float32."""
        return normal(self.seed, purpose, self.step, self.positions, shape)

    def uniform(self, purpose: str, shape: Sequence[int] = ()) -> Tensor:
        """Uniform numbers in [0, 1) [b, *shape] in float64."""
        return uniform(self.seed, purpose, self.step, self.positions, shape)

    def scalar(self, purpose: str) -> float:
        """One uniform number for the whole step."""
        return float(stream(self.seed, purpose, self.step).random())

    def indices(self, count: int) -> np.ndarray:
        """Indices of samples out of `count`: an epoch visits each once, in an order of its own, across steps."""
        seen = self.step * self.batch_size + np.asarray(self.positions)
        return np.array([_order(self.seed, int(p) // count, count)[p % count] for p in seen])


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    return permutation(seed, "order", epoch, count)
