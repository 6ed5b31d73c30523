# pyright: basic, reportArgumentType=false, reportOperatorIssue=false, reportIndexIssue=false, reportCallIssue=false
"""The kernels as operators of torch: opaque to torch.compile, with shapes for its fake tensors, and with a gradient.

A capture comes as six tensors (captures.py says which) and three facts; everything else is plain numbers.
"""

import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from dit_shd.attention.bias import Bias, DenseBias
from dit_shd.attention.kernels import gradients
from dit_shd.attention.kernels.blocks import Blocks
from dit_shd.attention.kernels.scores import Side, attend_values
from dit_shd.attention.relative_bias import RelativeBias, lines_of
from dit_shd.attention.tiles import index_tensor

PRECISION = "widened" if os.environ.get("TRITON_INTERPRET") == "1" else "ieee"
"""Of products of float32: TF32 would be three decimal digits."""
LOG2_E = 1 / math.log(2)


def side(tensors: Sequence[Tensor], bias: str, factor: float, bias_factor: float, offset: int) -> Side:
    """The kernels' view of a capture: query, key, bias, query_code, key_code, positions; scores in powers of two."""
    factor, bias_factor = factor * LOG2_E, bias_factor * LOG2_E
    query, key, added, query_code, key_code, positions = tensors
    strides = broadcast_strides(added)
    bias_strides = {"none": [0] * 4, "dense": strides}.get(bias, [0, *strides[:1], 0, 0])
    return Side(
        query, *query.stride()[:3], key, *key.stride()[:3], query.shape[1] // key.shape[1], factor,
        added, *bias_strides, bias_factor, query_code, _per_sample(query_code), key_code, _per_sample(key_code),
        offset, positions,
    )  # fmt: skip


def launched(kernel: Any, grid: tuple[int, ...], x: Tensor) -> Callable[..., None]:
    """kernel[grid] on the GPU of x, and in its stream: Triton takes the current one, wherever the tensors are."""

    def run(*arguments: Any, **options: Any) -> None:
        with torch.cuda.device_of(x):
            kernel[grid](*arguments, **options)

    return run


def in_lines(window: int) -> bool:
    """Whether kernels add the bias of a whole grid by runs of memory: where 16 bytes of a run can be read at once."""
    return window % 4 == 0


def starts_of(window: int, device: torch.device) -> Tensor:
    """Where each query token's run of its head's lines [x_q, (2w-1) w] begins (attention/relative_bias.py) [w*w]."""
    line, length = range(window), (2 * window - 1) * window
    return index_tensor(tuple(x * length + (window - 1 - y) * window for y in line for x in line), device, torch.int32)


def broadcast_strides(x: Tensor) -> list[int]:
    """Strides that are 0 where a tensor has one entry only."""
    return [0 if size == 1 else stride for size, stride in zip(x.shape, x.stride())]


def _per_sample(code: Tensor) -> int:
    return code.stride(0) if code.ndim == 2 and code.shape[0] > 1 else 0


@torch.library.custom_op("dit_shd::attend_values", mutates_args=())
def attend(
    tensors: Sequence[Tensor],
    bias: str,
    causal: bool,
    factor: float,
    bias_factor: float,
    offset: int,
    value: Tensor,
    heads: Tensor,
    partners: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Some heads' A_i V_a [b,H,values,n,d] for the values that partners [H,values] names; top and 1/total [b,H,n].

    All in float32; undefined where partners names no value (-1).
    """
    out = _values(tensors, heads, partners, value)
    top, inverse = _attended(tensors, bias, causal, factor, bias_factor, offset, value, heads, partners, out)
    return out, top, inverse


def _values(tensors: Sequence[Tensor], heads: Tensor, partners: Tensor, value: Tensor) -> Tensor:
    b, _, n, _ = tensors[0].shape
    shape = b, heads.shape[0], n, partners.shape[1], value.shape[3]
    return value.new_empty(shape, dtype=torch.float32).transpose(2, 3)  # all values of a row side by side


def _attended(
    tensors: Sequence[Tensor],
    bias: str,
    causal: bool,
    factor: float,
    bias_factor: float,
    offset: int,
    value: Tensor,
    heads: Tensor,
    partners: Tensor,
    out: Tensor,
) -> tuple[Tensor, Tensor]:
    """Write the values to out[b,H,values,n,d]; top and 1/total [b,H,n]."""
    query, key = tensors[:2]
    (b, _, n, d), m, (count, values), width = query.shape, key.shape[2], partners.shape, value.shape[3]
    top = query.new_empty(b, count, n, dtype=torch.float32)
    inverse = torch.empty_like(top)
    blocks = Blocks.of_values(d, width, values, query.dtype, bias).here()
    launched(attend_values, (triton.cdiv(n, blocks.rows), count, b), query)(
        side(tensors, bias, factor, bias_factor, offset), value, *value.stride()[:3],
        heads, partners, out, *out.stride()[:4], top, inverse, count, n, m,
        VALUES=values, WIDTH=d, BLOCK_WIDTH=blocks.width(d), VALUE_WIDTH=width, BLOCK_VALUE=blocks.width(width),
        BIAS=bias, CAUSAL=causal, WHOLE=m % blocks.cols == 0, PRECISION=PRECISION, **blocks.options(),
    )  # fmt: skip
    return top, inverse


@attend.register_fake
def _(tensors, bias, causal, factor, bias_factor, offset, value, heads, partners):  # type: ignore[no-untyped-def]
    b, _, n, _ = tensors[0].shape
    top = tensors[0].new_empty(b, heads.shape[0], n, dtype=torch.float32)
    return _values(tensors, heads, partners, value), top, torch.empty_like(top)


@torch.library.custom_op("dit_shd::attention", mutates_args=())
def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    leaf: Tensor,
    query_code: Tensor,
    key_code: Tensor,
    kind: str,
    window: int,
    causal: bool,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention with a bias, and what its gradient needs.

    Args:
        query: [b,h,n,d].
        key: [b,h/shared,m,d].
        value: [b,h/shared,m,v].
        leaf: A dense bias [b or 1,h or 1,n or 1,m or 1], or the table of a relative one [entries,h].
        query_code: [b or 1,n], codes of tokens of a grid of window x window.
        key_code: [b or 1,m].
        kind: `none`, `dense`, `grid` (a relative bias of all tokens) or `tokens` (of some).
        window: Tokens along one side, of a relative bias.
        causal: Query i sees keys 0..i only.
        scale: Factor of the scores.

    Returns:
        [b,h,n,v] in the query's precision, token by token in memory; top and 1/total [b,h,n] in float32.
    """
    (b, h, n, _), shared = query.shape, query.shape[1] // key.shape[1]
    out = query.new_empty(b, n, h, value.shape[3]).transpose(1, 2)
    heads = torch.arange(h, dtype=torch.int32, device=query.device)
    partners = (heads // shared)[:, None].contiguous()
    layer = _tensors(query, key, leaf, query_code, key_code, kind, window, causal), *_facts(kind, window, causal, scale)
    top, inverse = _attended(*layer, value, heads, partners, out[:, :, None])
    return out, top, inverse


@attention.register_fake
def _(query, key, value, leaf, query_code, key_code, kind, window, causal, scale):  # type: ignore[no-untyped-def]
    b, h, n, _ = query.shape
    top = query.new_empty(b, h, n, dtype=torch.float32)
    return query.new_empty(b, n, h, value.shape[3]).transpose(1, 2), top, torch.empty_like(top)


def _tensors(
    query: Tensor, key: Tensor, leaf: Tensor, query_code: Tensor, key_code: Tensor, kind: str, window: int, causal: bool
) -> list[Tensor]:
    """The six tensors of a capture that `side` takes."""
    added = leaf.expand(-1, -1, -1, key.shape[2]) if kind == "dense" else leaf
    if kind == "grid" and in_lines(window):
        added, query_code = lines_of(leaf.t(), window), starts_of(window, query.device)
    elif kind in ("grid", "tokens"):
        added = leaf.t().contiguous()
    rows = query.shape[2] if causal else 0
    return [query, key, added, query_code, key_code, torch.arange(rows, dtype=torch.int32, device=query.device)]


def _facts(kind: str, window: int, causal: bool, scale: float) -> tuple[str, bool, float, float, int]:
    """Bias, causality, factor, bias factor and offset."""
    bias = {"grid": "lines" if in_lines(window) else "relative", "tokens": "relative"}.get(kind, kind)
    return bias, causal, scale, 1.0, (window - 1) * (2 * window - 1) + (window - 1)


@torch.library.custom_op("dit_shd::attention_backward", mutates_args=())
def attention_backward(
    d_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    leaf: Tensor,
    query_code: Tensor,
    key_code: Tensor,
    out: Tensor,
    top: Tensor,
    inverse: Tensor,
    kind: str,
    window: int,
    causal: bool,
    scale: float,
    learns: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients by query, key and value, and by the bias's leaf if it learns."""
    (b, h, n, d), (h_k, m), width = query.shape, key.shape[1:3], value.shape[3]
    bias, _, *numbers = _facts(kind, window, causal, scale)
    view = side(_tensors(query, key, leaf, query_code, key_code, kind, window, causal), bias, *numbers)
    d_out = d_out if d_out.stride(3) == 1 else d_out.contiguous()
    delta = (d_out.float() * out.float()).sum(-1)
    up = gradients.Upstream(value, *value.stride()[:3], d_out, *d_out.stride()[:3], top, inverse, delta)
    made = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (query, key, value)]
    fixed: dict[str, Any] = dict(
        WIDTH=d, BLOCK_WIDTH=Blocks.width(d), VALUE_WIDTH=width, BLOCK_VALUE=Blocks.width(width),
        BIAS=bias, CAUSAL=causal, PRECISION=PRECISION,
    )  # fmt: skip
    blocks = Blocks.of_gradients(d, width, query.dtype, bias).here()
    launched(gradients.attention_rows, (triton.cdiv(n, blocks.rows), h, b), query)(
        view, up, made[0], h, n, m, **fixed, WHOLE=m % blocks.cols == 0, **blocks.options()
    )
    collector = _of(kind, leaf, window, query_code, key_code).gradient(1) if learns else None
    collect = {"dense": "dense", "tokens": "entries"}.get(kind, "none") if learns else "none"
    into = top.new_zeros(b, h, leaf.shape[0]) if collect == "entries" else made[1]
    into = collector.collected if collector is not None and collect == "dense" else into
    strides = {"dense": broadcast_strides(into), "entries": [*into.stride()[:2], 0, 0]}.get(collect, [0] * 4)
    blocks = Blocks.of_key_gradients(d, width, query.dtype, bias).here()
    launched(gradients.attention_keys, (triton.cdiv(m, blocks.cols), h_k, b), query)(
        view, up, made[1], made[2], into, *strides, h, n, m,
        COLLECT=collect, WHOLE=m % blocks.cols == 0, **fixed, **blocks.options(),
    )  # fmt: skip
    if collector is None:
        return made[0], made[1], made[2], leaf.new_empty(0)
    if kind == "grid":
        into, line = top.new_empty(b, h, window, 2 * window - 1, window), Blocks.of_offsets(window).here()
        launched(gradients.attention_offsets, (2 * window - 1, h, b), query)(
            view, up, into, window, h, n, **fixed, WHOLE=line.cols == window, **line.options()
        )
    if collect != "dense":
        collector.collected.copy_(into.sum(0, keepdim=True).view(collector.collected.shape))
    (d_leaf,) = _of(kind, leaf, window, query_code, key_code).weighted(collector.total())
    return made[0], made[1], made[2], d_leaf.clone(memory_format=torch.contiguous_format)


def _of(kind: str, leaf: Tensor, window: int, query_code: Tensor, key_code: Tensor) -> Bias:
    """The bias once more."""
    if kind == "dense":
        return DenseBias(leaf)
    return RelativeBias(leaf, window) if kind == "grid" else RelativeBias(leaf, window, key_code, query_code)


@attention_backward.register_fake
def _(d_out, query, key, value, leaf, query_code, key_code, out, top, inverse, kind, window, causal, scale, learns):  # type: ignore[no-untyped-def]
    made = [torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (query, key, value)]
    return (*made, torch.empty(leaf.shape if learns else 0, dtype=leaf.dtype, device=leaf.device))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:6], *output)
    ctx.facts = inputs[6:]
    ctx.learns = inputs[3].requires_grad and inputs[6] != "none"
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, d_out: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if d_out is None:
        return (None,) * 10
    *grads, d_leaf = attention_backward(d_out, *ctx.saved_tensors, *ctx.facts, ctx.learns)
    return *grads, d_leaf if ctx.learns else None, *(None,) * 6


attention.register_autograd(_backward, setup_context=_setup)
