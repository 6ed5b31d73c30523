"""What a teacher's W^O enters a squeeze by, kept from step to step."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from weakref import ref

import torch
from torch import Tensor, nn

from dit_shd.attention.recording.weight_samples import diagonals
from dit_shd.attention.tiles import index_tensor
from dit_shd.core.precision import wide_dtype
from dit_shd.squeezing.products import Groups

CHANGED = (
    "SHD: the teacher's W^O was changed through .data; change it in place (with torch.no_grad(): p.lerp_(q, 0.1)), or "
    "call loss.squeezer.projections.clear() after each change"
)
"""What a GPU says as it stops."""


class _Kept(NamedTuple):
    exists: Callable[[], object]
    """None once the memory of W^O is gone."""
    version: int
    sample: Tensor | None
    """Some of its numbers, for changes that its version does not count."""
    result: Tensor


@dataclass
class Projections:
    """A cache of what W^O enters by, for a teacher whose weights do not change (the last `size` layers or kinds).

    In-place changes of W^O are noticed. Those through `.data`, which PyTorch does not count, are noticed by a sample of
    its numbers: a CPU makes it anew, a GPU, which is not waited for, stops (CHANGED). What was made of a W^O goes with
    it: quantised weights and adapters have another one in every forward.
    """

    size: int = 256
    generation: int = 0
    """Counts what was dropped or replaced: what reads a kept tensor where it lies (a CUDA graph) is void then."""
    _kept: dict[tuple[object, ...], _Kept] = field(default_factory=dict)

    def __reduce__(self) -> tuple[Any, ...]:  # weak references are of one process
        return Projections, (self.size,)

    def of(self, out: Tensor, groups: Groups) -> Tensor:
        """L [G,k,d,f] in float64, f = min(k d, e), with L_a L_c^T = W_a W_c^T inside each group of `out` [h,d,e].

        Seen as [G,k d,f] it is zero above the diagonal.
        """
        return self._cached(_short_factor, out, groups)

    def grams(self, out: Tensor, groups: Groups) -> Tensor:
        """W_a W_c^T [G,k,d,k,d] in float64 inside each group of `out` [h,d,e]."""
        return self._cached(_grams, out, groups)

    def _cached(self, made: Callable[[Tensor, Groups], Tensor], out: Tensor, groups: Groups) -> Tensor:
        if torch.compiler.is_compiling():  # a graph has no cache
            return made(out, groups)
        key = (made, out.data_ptr(), tuple(out.shape), out.stride(), out.dtype, str(out.device), str(groups))
        entry = self._kept.get(key)
        version = 0 if out.is_inference() else out._version
        if entry is not None and entry.exists() is not None and entry.version == version and _same(entry.sample, out):
            return entry.result
        result = made(out, groups)
        self.generation += entry is not None
        while len(self._kept) >= self.size:
            self._drop(next(iter(self._kept)))
        self._kept[key] = _Kept(_memory(out, lambda _: self._drop(key)), version, _sample(out), result)
        return result

    def _drop(self, key: tuple[object, ...]) -> None:
        self.generation += self._kept.pop(key, None) is not None

    def clear(self) -> None:
        """Empty the cache."""
        self._kept.clear()
        self.generation += 1


def _memory(out: Tensor, gone: Callable[[Any], None]) -> Callable[[], object]:
    """What gives a tensor's storage as long as that exists, and calls `gone` then; the tensor, if it has none."""
    try:
        return ref(out.untyped_storage(), gone)
    except (NotImplementedError, RuntimeError):
        return lambda: out


def _sample(out: Tensor) -> Tensor | None:
    """Numbers of every row of a W^O [h,d,e]; None where there are none to compare, as on meta."""
    return None if out.is_meta or type(out) not in (Tensor, nn.Parameter) else _numbers(out)


def _numbers(out: Tensor) -> Tensor:
    """Some numbers of every row of a W^O [h,d,e], and its sum, which a change of few numbers (peft's SHiRA) changes."""
    rows = out.detach().flatten(0, 1)
    return torch.cat([diagonals(rows), rows.sum(1, dtype=wide_dtype(rows))])


def _same(sample: Tensor | None, out: Tensor) -> bool:
    """Whether a W^O still has the numbers of its sample; a GPU looks by itself, also where a CUDA graph is replayed."""
    if sample is None:
        return True
    if sample.device.type != "cuda":
        return torch.equal(_numbers(out), sample)
    torch._assert_async(((_numbers(out) == sample) | sample.isnan()).all(), CHANGED)
    return True


def _stacked(out: Tensor, groups: Groups) -> Tensor:
    """W^O of groups [G, k d, e]."""
    place = index_tensor(tuple(head for group in groups for head in group), out.device).view(len(groups), -1)
    return out.detach()[place].double().flatten(1, 2)


def _grams(out: Tensor, groups: Groups) -> Tensor:
    stacked, k = _stacked(out, groups), len(groups[0])
    return (stacked @ stacked.transpose(1, 2)).view(len(groups), k, -1, k, stacked.shape[1] // k)


def _short_factor(out: Tensor, groups: Groups) -> Tensor:
    upper = torch.linalg.qr(_stacked(out, groups).transpose(1, 2), mode="r").R  # [G, f, k d]
    return upper.transpose(1, 2).unflatten(1, (len(groups[0]), -1)).contiguous()
