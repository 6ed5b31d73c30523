"""Maps, one tile at a time: some samples, some groups of heads, a run of query rows. Nothing n x m outlives its tile.

A tile lives in buffers that are used again for the next one: on a CPU, fresh memory costs as much as the arithmetic.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from dit_shd.attention.bias import Adder, Heads
from dit_shd.attention.capture import Capture
from dit_shd.attention.softmax import softmax_

CHUNK_MIB = 64
"""Memory budget for what is n x m at any one time, in MiB."""
PLANE_MIB, CACHE_MIB = 2, 7.5
"""On a CPU: what one plane of rows and what a tile of several groups may take, to stay in its caches (measured)."""
WORTH_MIB = 1
"""On a CPU a sample that fills this much is a tile of its own: its q, k and v are then used where they lie."""


@dataclass(frozen=True)
class Tiling:
    """How many samples, groups of heads and query rows make one tile; several samples only with all groups and rows."""

    samples: int
    groups: int
    rows: int

    @classmethod
    def choose(
        cls, b: int, groups: int, n: int, m: int, planes: int, device: torch.device, chunk_mib: float = CHUNK_MIB
    ) -> "Tiling":
        """The largest tile inside the budget, of `planes` float32 planes [r,m] for each sample and group.

        Rows come first (matrix products want them), then groups, then samples; never less than one of each.
        """
        if not chunk_mib > 0:
            raise ValueError(f"chunk_mib: wanted a memory budget above 0 MiB, found {chunk_mib}")
        mib_per_row = 4 * m / 2**20
        cpu = device.type == "cpu"
        budget = chunk_mib / (planes * mib_per_row)  # rows of one group and sample that fit
        cached = min(budget, CACHE_MIB / (planes * mib_per_row)) if cpu else budget
        rows = max(1, min(n, int(min(budget, PLANE_MIB / mib_per_row) if cpu else budget)))
        if 64 < rows < n:
            rows -= rows % 64
        together = max(1, min(groups, int(cached / rows)))
        samples = max(1, min(b, int(cached / (rows * groups))))
        if rows < n or (cpu and planes * mib_per_row * groups * n >= WORTH_MIB):
            samples = 1
        return cls(samples, together, rows)


def slices(total: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most `size`, evenly sized."""
    count = -(-total // size)
    even = -(-total // count)
    return (slice(start, min(start + even, total)) for start in range(0, total, even))


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """No autocast on a device; meta has none."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


class Buffers:
    """Named scratch memory that grows to the largest tile and is used again."""

    def __init__(self, dtype: torch.dtype, device: torch.device):
        self.dtype, self.device = dtype, device
        self._flat: dict[str, Tensor] = {}

    @classmethod
    def fitting(cls, given: "Buffers | None", dtype: torch.dtype, device: torch.device) -> "Buffers":
        """The given ones if they are of that kind, else fresh ones."""
        return given if given is not None and (given.dtype, given.device) == (dtype, device) else cls(dtype, device)

    def take(self, name: str, *shape: int) -> Tensor:
        """An uninitialised tensor; it is gone when the name is taken again."""
        size = int(torch.Size(shape).numel())
        flat = self._flat.get(name)
        if flat is None or flat.numel() < size:
            flat = self._flat[name] = torch.empty(size, dtype=self.dtype, device=self.device)
        return flat[:size].view(shape)


class Maps:
    """The maps of some samples and heads of a capture, tile by tile.

    Args:
        capture: Detached.
        samples: Which of them, in the order in which they are wanted.
        heads: Likewise.
        temperature: T_a.
        buffers: Where the tiles live; maps(name) overwrites what that name held before.
    """

    def __init__(self, capture: Capture, samples: slice, heads: Sequence[int], temperature: float, buffers: Buffers):
        self.buffers = buffers
        _, _, self.n, self.m = capture.shape
        self.heads = run_of(heads, capture.query.device)
        self.count = len(heads)
        self.query = flat(capture.query, samples, self.heads).to(buffers.dtype)
        """[b*k,n,d]"""
        key_heads = run_of(capture.key_heads(heads), capture.key.device)
        self.key = flat(capture.key, samples, key_heads).to(buffers.dtype).contiguous()
        """[b*k,m,d]"""
        self.factor = capture.scale / temperature
        """factor * query @ key^T are the scores over T, but for the bias."""
        self._bias = None if capture.bias is None else capture.bias.samples(samples)
        self._bias_factor = 1.0 / temperature
        self._positions = capture.positions
        self._causal = capture.causal
        self.may_mask = capture.masks
        """Whether a row may have every key masked."""
        self.hides = capture.masks or capture.causal
        """Whether scores may be minus infinity."""

    def scores(self, rows: slice, name: str = "scores", out: Tensor | None = None) -> Tensor:
        """S / T [b,k,r,m] of some query rows, in a buffer or in `out` [b*k,r,m]."""
        query = self.query[:, rows]
        scores = self.buffers.take(name, query.shape[0], query.shape[1], self.m) if out is None else out
        whole = self._whole_bias(rows)
        start, beta = (scores, 0) if whole is None else (whole, self._bias_factor)
        torch.baddbmm(start, query, self.key.transpose(1, 2), beta=beta, alpha=self.factor, out=scores)
        scores = scores.view(-1, self.count, *scores.shape[1:])
        return self._biased(scores, rows) if whole is None else self._masked(scores, rows)

    def bias(self, rows: slice) -> Tensor:
        """What is added to the scores of some query rows [b,k,r,m]: bias over T, minus infinity where hidden."""
        samples, r = self.query.shape[0] // self.count, rows.stop - rows.start
        return self._biased(self.buffers.take("bias", samples, self.count, r, self.m).zero_(), rows)

    def _whole_bias(self, rows: slice) -> Tensor | None:
        """The bias of one sample's tile [k,r,m], for a product that begins with it; None where it is to be added."""
        bias = self._bias.tile(self.heads, rows) if self._bias is not None and len(self.query) == self.count else None
        return bias if bias is not None and bias.dtype == self.buffers.dtype else None

    @cached_property
    def _add(self) -> Adder | None:
        return None if self._bias is None else self._bias.adder(self.heads, self._bias_factor)

    def _biased(self, scores: Tensor, rows: slice) -> Tensor:
        if self._add is not None:
            self._add(scores, rows)
        return self._masked(scores, rows)

    def _masked(self, scores: Tensor, rows: slice) -> Tensor:
        if self._causal:
            at = torch.arange(self.n, device=scores.device) if self._positions is None else self._positions
            scores.masked_fill_(torch.arange(self.m, device=scores.device) > at[rows, None], float("-inf"))
        return scores

    def maps(self, rows: slice, name: str = "maps", out: Tensor | None = None) -> Tensor:
        """softmax(S / T) [b,k,r,m] of some query rows, as `scores`; zeros where all of a row is masked."""
        return softmax_(self.scores(rows, name, out), self.may_mask)


def flat(x: Tensor, samples: slice, heads: Heads) -> Tensor:
    """Some samples and heads of x[b,h,n,d] as [b*k,n,d]; of one sample and consecutive heads it is a view."""
    if samples.stop - samples.start == 1:
        return x[samples.start, heads]
    return x[samples, heads].flatten(0, 1)


class Loan:
    """Some samples and heads of x[b,h,n,d] to write to, as [b*k,n,d]: x itself where it can be seen so, else a copy.

    Entered, it gives uninitialised memory; left, x has what was written.
    """

    def __init__(self, x: Tensor, samples: slice, heads: Heads, buffers: Buffers, name: str):
        self.x, self.place, self.flat = x, (samples, heads), flat(x, samples, heads)
        self.direct = self.flat.data_ptr() == x[self.place].data_ptr() and x.dtype == buffers.dtype
        if not self.direct:
            self.flat = buffers.take(name, *self.flat.shape)

    def __enter__(self) -> Tensor:
        return self.flat

    def __exit__(self, *_: object) -> None:
        if not self.direct:
            self.x[self.place] = self.flat.view(self.x[self.place].shape)


def add_product(out: Tensor, a: Tensor, b: Tensor, factor: float = 1.0, first: bool = False) -> None:
    """Out += factor a @ b, batch by batch; `first` does not read what out held."""
    torch.baddbmm(out, a, b, beta=0 if first else 1, alpha=factor, out=out)


_on_device: dict[tuple[tuple[float, ...], torch.device, torch.dtype], Tensor] = {}


def index_tensor(indices: tuple[float, ...], device: torch.device, dtype: torch.dtype = torch.int64) -> Tensor:
    """Indices, or other constants, on a device; copied to a GPU once, since it has to be waited for at every copy."""
    place = _on_device.get((indices, device, dtype))
    if place is None:
        place = torch.tensor(indices, device=device, dtype=dtype)
        if device.type == "cuda" and type(place) is Tensor:  # and none that only stands for one while code is traced
            _on_device[indices, device, dtype] = place
    return place


def run_of(heads: Sequence[int], device: torch.device) -> Heads:
    """Consecutive heads as a slice, others as their indices on a device."""
    first = heads[0]
    if list(heads) == list(range(first, first + len(heads))):
        return slice(first, first + len(heads))
    return index_tensor(tuple(heads), device)
