"""Models and batches on the meta device: tensors have shapes and no memory, and operations on them can be counted.

The meta device lacks autocast and the fused attention kernel of a GPU; `emulate_gpu` replaces both.
"""

import json
import weakref
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, cast
from unittest.mock import patch

import torch
import torch.nn.functional as F
from diffusers import ModelMixin
from torch import Tensor, UntypedStorage, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from dit_shd.core.plugins import Plugin
from dit_shd.models.blocks import blocks, recompute
from dit_shd.models.families import FAMILIES
from dit_shd.models.lora import add_noted, note_of
from dit_shd.models.quantization import OF_QUANTISED

T = TypeVar("T")
HIDREAM_EXPERTS = "MOEFeedForwardSwiGLU"
"""The class of its mixtures of experts, which look at the numbers, too."""
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
"""The functions that autocast runs in low precision, as far as these models use them."""
IN_FLOAT32: set[Callable[..., Tensor]] = {
    *(F.cross_entropy, F.nll_loss, F.kl_div, F.mse_loss),
    *(F.softmax, torch.softmax, Tensor.softmax, F.log_softmax, torch.log_softmax, Tensor.log_softmax),
}
"""Those that it runs in float32."""


@dataclass(frozen=True)
class ModelSpec:
    """Class and config of a model; can be the key of a cache."""

    cls: type[ModelMixin]
    config: str
    lora: str = ""
    """Of models/lora.py: the settings of its adapters."""

    @classmethod
    def of(cls, model: nn.Module) -> "ModelSpec":
        """The specification of a model, compiled or not."""
        model = getattr(model, "_orig_mod", model)  # torch.compile(model)
        entries = cast("Any", model.config).items()  # those with an underscore are notes: a path, a version
        config = {key: value for key, value in entries if key not in OF_QUANTISED and key[:1] != "_"}
        return cls(cast("type[ModelMixin]", type(model)), json.dumps(config, sort_keys=True), note_of(model))

    def skeleton(self) -> ModelMixin:
        """The model without memory."""
        with META:
            return _countable(self.build())

    def build(self) -> ModelMixin:
        """The model with random weights."""
        cls: Any = self.cls
        model = cls.from_config(json.loads(self.config))
        add_noted(model, self.lora)
        return model


def build(plugin: Plugin, where: str) -> ModelMixin:
    """The model of a family without memory."""
    with META:
        return _countable(FAMILIES.build(plugin, where))


def _countable(model: ModelMixin) -> ModelMixin:
    """A model without memory whose experts, if it has some, are products of a kind that can be counted there.

    transformers' grouped products look at their numbers; batches of products are as many operations.
    """
    network: Any = getattr(model, "network", None)
    if getattr(network, "_can_set_experts_implementation", bool)():
        network.set_experts_implementation("batched_mm")
    for module in model.modules():
        if type(module).__name__ == HIDREAM_EXPERTS:
            module.forward = partial(_evenly, module)
    return model


def _evenly(mixture: Any, x: Tensor) -> Tensor:  # noqa: ANN401
    """A mixture of experts of HiDream, each of which has as many tokens, where their numbers say nothing."""
    shares = F.linear(x, mixture.gate.weight).softmax(-1).topk(mixture.num_activated_experts).values
    tokens = x.flatten(0, 1).repeat_interleave(mixture.num_activated_experts, dim=0)
    parts = [expert(part) for expert, part in zip(mixture.experts, tokens.chunk(len(mixture.experts)))]
    mixed = torch.cat(parts).unflatten(0, shares.shape) * shares.unsqueeze(-1)
    return mixed.sum(-2) + mixture.shared_experts(x)


@contextmanager
def emulate_gpu(precision: str, keep: bool = True) -> Generator[None]:
    """Run fused attention, and matrix products in the low precision of autocast.

    Args:
        precision: Of autocast.
        keep: Hold what weights that learn are in low precision until the outermost one ends, as autocast does.
    """
    outermost = keep and not _weights_in_low
    if keep:
        _weights_in_low.setdefault(None, None)
    try:
        with _Kernels(DTYPES.get(precision)), without_autocast():
            yield
    finally:
        if outermost:
            _weights_in_low.clear()


_weights_in_low: dict[nn.Parameter | None, Tensor | None] = {}
"""Weight -> what it is in low precision, while an `emulate_gpu` that keeps them is at work (the key None)."""


@contextmanager
def without_autocast() -> Generator[None]:
    """Let models turn autocast off on the meta device, as those of transformers do; PyTorch refuses that."""
    autocast, is_enabled = torch.autocast, torch.is_autocast_enabled

    def of(device_type: str, *args: Any, **kwargs: Any) -> AbstractContextManager[object]:
        return nullcontext() if device_type == META.type else autocast(device_type, *args, **kwargs)

    def enabled(device_type: str = "cuda") -> bool:
        return device_type != META.type and is_enabled(device_type)

    with patch.object(torch, "autocast", of), patch.object(torch, "is_autocast_enabled", enabled):
        yield


def recompute_blocks(model: nn.Module, precision: str) -> None:
    """Turn on gradient checkpointing, in which blocks run again with the kernels of `emulate_gpu`.

    What runs in the backward sees no function mode, so every block brings its own, and so do its parts: transformers
    checkpoints a block's class, past what is set on the block.

    Args:
        model: That is thrown away afterwards.
        precision: As in emulate_gpu.
    """
    recompute(model)
    for module in (part for block in blocks(model) for part in (block, *block.children())):
        module.forward = partial(_emulated, module.forward, precision)


def _emulated(forward: Callable[..., T], precision: str, *args: Any, **kwargs: Any) -> T:
    with emulate_gpu(precision):
        return forward(*args, **kwargs)


class _Kernels(TorchFunctionMode):
    def __init__(self, low: torch.dtype | None):
        super().__init__()
        self.low = low

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> object:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return _fused(*self._lowered_all(args[:3]), *args[3:], **self._lowered_all(kwargs))
        if func in PRODUCTS:
            args, kwargs = self._lowered_all(args), self._lowered_all(kwargs)
        if func in IN_FLOAT32 and self.low is not None:
            args, kwargs = self._raised_all(args), self._raised_all(kwargs)
        return func(*args, **kwargs)

    def _lowered_all(self, arguments: T) -> T:
        return cast("T", tree_map(self._lowered, arguments))

    def _lowered(self, x: object) -> object:
        if self.low is None or not isinstance(x, Tensor) or x.dtype != torch.float32:
            return x
        if not (_weights_in_low and isinstance(x, nn.Parameter) and x.requires_grad):
            return x.to(self.low)
        known = _weights_in_low.get(x)
        if known is None:
            known = _weights_in_low[x] = x.to(self.low)
        return known

    def _raised_all(self, arguments: T) -> T:
        return cast("T", tree_map(self._raised, arguments))

    def _raised(self, x: object) -> object:
        return x.float() if isinstance(x, Tensor) and x.dtype == self.low else x


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
    if attn_mask is not None and attn_mask.dtype == torch.bool and len(attn_mask) == len(query):
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype)  # kept by each layer; one for all stands for causal
    kernel = torch.ops.aten._scaled_dot_product_efficient_attention
    return kernel(query, key, value, attn_mask, True, dropout_p, is_causal, scale=scale)[0]


class MemoryTracker(TorchDispatchMode):
    """Counts bytes of the tensors that are created and still alive (`now`), and their maximum (`peak`).

    Args:
        models: Whose parameters, gradients and buffers are not counted.
    """

    def __init__(self, *models: nn.Module):
        super().__init__()
        self.now = self.peak = 0
        self._alive: set[int] = set()
        self._excluded = []
        for model in models:
            tensors = [*model.parameters(), *model.buffers(), *(p.grad for p in model.parameters())]
            self._excluded += [t.untyped_storage() for t in tensors if t is not None]
        self._alive.update(storage._cdata for storage in self._excluded)

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> object:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: UntypedStorage) -> None:
        if storage._cdata in self._alive:
            return
        self._alive.add(storage._cdata)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._remove, storage._cdata, storage.nbytes())

    def _remove(self, name: int, size: int) -> None:
        self._alive.discard(name)
        self.now -= size
