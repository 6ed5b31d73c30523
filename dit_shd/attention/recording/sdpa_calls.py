"""Calls of PyTorch's scaled_dot_product_attention, noted while somebody else's attention module runs.

Every softmax attention of diffusers (native backend), timm and transformers (sdpa) ends in that one function, so a
function mode around the module sees what it worked with, whatever the module looks like.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

RawCall = tuple[tuple[Any, ...], dict[str, Any], Tensor]
"""Positional arguments, keywords and result."""


class SDPATap(TorchFunctionMode):
    """Appends every call of scaled_dot_product_attention to `calls`; changes nothing. Traceable by torch.compile."""

    def __init__(self, calls: list[RawCall]):
        super().__init__()
        self.calls = calls

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            self.calls.append((args, kwargs, result))
        return result


@dataclass(frozen=True, eq=False)
class Call:
    """One call: softmax(scale q k^T + mask) v."""

    query: Tensor
    """[b,h,n,d]"""
    key: Tensor
    """[b,h or fewer,m,d]"""
    value: Tensor
    mixed: Tensor | None
    """The result [b,h,n,d], unless dropout has changed it."""
    mask: Tensor | None
    """Broadcastable to [b,h,n,m]; boolean (True is kept) or added to the scores."""
    causal: bool
    scale: float

    @classmethod
    def of(cls, raw: RawCall) -> "Call":
        args, kwargs, result = raw
        query, key, value, mask, dropout, causal, scale = _arguments(*args, **kwargs)
        if not query.ndim == key.ndim == value.ndim == 4:
            raise ValueError(f"wanted query, key and value with four dimensions, found {tuple(query.shape)}")
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        return cls(query, key, value, None if dropout else result, mask, causal, scale)


def _arguments(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, float, bool, float | None]:
    """The arguments of a call by their names."""
    return query, key, value, attn_mask, dropout_p, is_causal, scale


def joined(calls: Sequence[Call]) -> list[Call]:
    """The calls of a layer, as one where it takes its samples one at a time."""
    first = calls[0]
    alike = all(
        x.query.shape == first.query.shape
        and x.key.shape == first.key.shape
        and (x.causal, x.scale) == (first.causal, first.scale)
        and (None if x.mask is None else x.mask.shape) == (None if first.mask is None else first.mask.shape)
        for x in calls
    )
    if len(calls) == 1 or not alike or first.query.shape[0] != 1:
        return list(calls)
    query, key, value = (torch.cat([getattr(x, name) for x in calls]) for name in ("query", "key", "value"))
    results = [x.mixed for x in calls if x.mixed is not None]
    mixed = torch.cat(results) if results else None
    masks = [x.mask for x in calls if x.mask is not None]
    if masks and masks[0].ndim < 4:
        masks = [mask.expand(1, 1, *mask.shape[-2:]) for mask in masks]
    return [Call(query, key, value, mixed, torch.cat(masks) if masks else None, first.causal, first.scale)]
