"""Models and batches on the meta device: tensors have shapes and no memory, and what is done to them can be counted.

The meta device lacks two things that a GPU has: autocast, and the fused attention kernel. `emulate_gpu` stands in.
"""

import json
import weakref
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, UntypedStorage, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from dit_shd.core.plugins import Plugin
from dit_shd.models.families import FAMILIES

META = torch.device("meta")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
PRODUCTS: set[Callable[..., Tensor]] = {
    F.linear,
    F.conv2d,
    F.conv3d,
    torch.matmul,
    torch.bmm,
    Tensor.matmul,
    Tensor.__matmul__,
}
"""What autocast runs in low precision, as far as these models use it."""


@dataclass(frozen=True)
class ModelSpec:
    """What a model is, but for its weights; can be the key of a cache."""

    cls: Any
    config: str

    @classmethod
    def of(cls, model: Any) -> "ModelSpec":
        model = getattr(model, "_orig_mod", model)  # torch.compile(model)
        return cls(type(model), json.dumps(dict(model.config), sort_keys=True))

    def skeleton(self) -> Any:
        """Such a model without memory."""
        with META:
            return self.build()

    def build(self) -> Any:
        """Such a model with random weights."""
        return self.cls.from_config(json.loads(self.config))


def build(plugin: Plugin, where: str) -> Any:
    """A model by name without memory."""
    with META:
        return FAMILIES.build(plugin, where)


@contextmanager
def emulate_gpu(precision: str) -> Generator[None]:
    """Fused attention, and the low precision that autocast would give to products."""
    with _Kernels(DTYPES.get(precision)):
        yield


class _Kernels(TorchFunctionMode):
    def __init__(self, low: torch.dtype | None):
        super().__init__()
        self.low = low

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return _fused(*map(self._lowered, args[:3]), *args[3:], **tree_map(self._lowered, kwargs))
        if func in PRODUCTS:
            args, kwargs = tree_map(self._lowered, (args, kwargs))
        return func(*args, **kwargs)

    def _lowered(self, x: Any) -> Any:
        lower = self.low is not None and isinstance(x, Tensor) and x.dtype == torch.float32
        return x.to(self.low) if lower else x


def _fused(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    if enable_gqa:
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    kernel = torch.ops.aten._scaled_dot_product_efficient_attention
    return kernel(query, key, value, attn_mask, True, dropout_p, is_causal, scale=scale)[0]


class MemoryTracker(TorchDispatchMode):
    """Bytes of the tensors that are made and still alive (`now`), and their highest number so far (`peak`).

    Args:
        known: modules whose parameters, gradients and buffers do not count.
    """

    def __init__(self, *known: nn.Module):
        super().__init__()
        self.now = self.peak = 0
        self._alive: set[int] = set()
        self._foreign = []
        for model in known:
            tensors = [*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters())]
            self._foreign += [t.untyped_storage() for t in tensors if t is not None]
        self._alive.update(storage._cdata for storage in self._foreign)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage())
        return result

    def _see(self, storage: UntypedStorage) -> None:
        if storage._cdata in self._alive:
            return
        self._alive.add(storage._cdata)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())

    def _gone(self, name: int, size: int) -> None:
        self._alive.discard(name)
        self.now -= size
