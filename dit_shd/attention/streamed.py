"""Softmax attention with an additive bias, tile by tile: no h x n x m tensor outlives its tile.

The stock kernels either keep the map for the backward or refuse a bias that needs a gradient, so the backward is
written by hand and computes a tile's map again from q, k and the bias. With P = softmax(S), S = scale q k^T + bias
and dO the output's gradient:

    dV = P^T dO,   dS = P * (dO V^T - rowsum(dO * O)),   dq = scale dS K,   dk = scale dS^T q,   dbias = dS
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dit_shd.attention.bias import Bias, DenseBias
from dit_shd.attention.capture import Capture
from dit_shd.attention.kernels import captures as kernels
from dit_shd.attention.tiles import CHUNK_MIB, Buffers, Loan, Maps, Tiling, add_product, flat, slices
from dit_shd.core.first_order import first_order
from dit_shd.core.precision import wide_dtype


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    bias: Bias | None = None,
    causal: bool = False,
    chunk_mib: float = CHUNK_MIB,
) -> Tensor:
    """softmax(scale q k^T + bias) v, in memory linear in n.

    Without a bias, or with a constant one, by PyTorch's own kernels; with a learnable one by Triton kernels on a GPU,
    else tile by tile.

    Args:
        query: [b,h,n,d].
        key: [b,h,m,d].
        value: [b,h,m,d]; its width may differ.
        scale: Factor of the scores.
        bias: Added to them, or nothing.
        causal: Query i sees keys 0..i only.
        chunk_mib: Memory budget for what is n x m, in MiB.

    Returns:
        [b,h,n,d]. Gradients reach query, key, value and the bias's leaves.
    """
    if bias is None or (isinstance(bias, DenseBias) and is_stock(bias) and not causal):
        return _fused(query, key, value, scale, causal, bias)
    device = query.device.type
    if device != "meta" and torch.is_autocast_enabled(device) and query.dtype != torch.float64:
        low = torch.get_autocast_dtype(device)
        query, key, value = query.to(low), key.to(low), value.to(low)
    if kernels.serves(query, key, value, bias):
        return kernels.attention(query, key, value, scale, bias, causal)
    return _StreamedAttention.apply(  # type: ignore[return-value]
        query, key, value, scale, bias, causal, chunk_mib, *bias.leaves
    )


def is_stock(bias: Bias | None) -> bool:
    """Whether PyTorch's own attention serves: no bias, or one as a tensor that needs no gradient."""
    return bias is None or (isinstance(bias, DenseBias) and not torch.is_grad_enabled())


def in_graph(query: Tensor, key: Tensor, value: Tensor, bias: Bias | None) -> bool:
    """Whether torch.compile can have `attend` in its graph: it is stock, or one operator."""
    return is_stock(bias) or kernels.serves(query, key, value, bias)


def _fused(
    query: Tensor, key: Tensor, value: Tensor, scale: float, causal: bool, bias: DenseBias | None = None
) -> Tensor:
    """Stock attention. Widths are made equal: where they are not, a CPU silently materialises the maps."""
    d, d_value = query.shape[3], value.shape[3]
    if d != d_value:  # padding by nothing would copy
        query, key = (F.pad(x, (0, max(0, d_value - d))) for x in (query, key))
        value = F.pad(value, (0, max(0, d - d_value)))
    mask = None if bias is None else _in(query.dtype, bias.leaves[0])
    return F.scaled_dot_product_attention(query, key, value, mask, is_causal=causal, scale=scale)[..., :d_value]


def _in(dtype: torch.dtype, bias: Tensor) -> Tensor:
    """A bias in another type, in which float32's finfo.min stays finite: a row of it is not empty, as one of -inf is.

    In bfloat16 it is uniform, as in float32; float16's own smallest number, -65504, leaves it to the scores.
    """
    given = bias.to(dtype)
    if given is bias or torch.finfo(dtype).bits >= torch.finfo(bias.dtype).bits:
        return given
    return given.masked_fill_((given == float("-inf")) & bias.isfinite(), torch.finfo(dtype).min)


class _StreamedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        bias: Bias,
        causal: bool,
        chunk_mib: float,
        *leaves: Tensor,
    ) -> Tensor:
        capture = Capture(query, key, value, scale, bias.detach(), causal)
        output = _like(query, value.shape[3])
        low = query.dtype in (torch.bfloat16, torch.float16)
        for samples, heads, rows_of, maps in _parts(capture, chunk_mib, planes=2 if low else 1):
            if low:  # the stock kernel's own low-precision products, with the bias of some rows as its mask
                q, k, v = query[samples, heads], key[samples, heads], value[samples, heads]
                for rows in rows_of:
                    mask = _in(query.dtype, maps.bias(rows))
                    mixed = F.scaled_dot_product_attention(q[:, :, rows], k, v, attn_mask=mask, scale=scale)
                    output[samples, heads, rows] = mixed
                continue
            values = flat(value, samples, heads).to(maps.buffers.dtype)
            with Loan(output, samples, heads, maps.buffers, "mixed") as mixed:
                for rows in rows_of:
                    torch.bmm(maps.maps(rows).flatten(0, 1), values, out=mixed[:, rows])
        ctx.save_for_backward(query, key, value, output, *leaves)
        ctx.scale, ctx.bias, ctx.causal, ctx.chunk_mib = scale, bias, causal, chunk_mib
        return output

    @staticmethod
    @first_order
    def backward(ctx: Any, d_output: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        query, key, value, output, *leaves = ctx.saved_tensors
        bias: Bias = ctx.bias.rebuilt(leaves)
        capture = Capture(query, key, value, ctx.scale, bias.detach(), ctx.causal)
        d_query, d_key, d_value = _like(query), _like(key), _like(value)
        collected = bias.gradient(1) if ctx.bias.needs_grad() else None
        for samples, heads, rows_of, maps in _parts(capture, ctx.chunk_mib, planes=2):
            buffers = maps.buffers
            values, d_out = (flat(x, samples, heads).to(buffers.dtype) for x in (value, d_output))
            delta = (d_out * flat(output, samples, heads)).sum(-1, keepdim=True)
            dk = buffers.take("dk", *maps.key.transpose(1, 2).shape)  # the other way round: that product is faster
            dv = buffers.take("dv", *values.transpose(1, 2).shape)
            with Loan(d_query, samples, heads, buffers, "dq") as dq:
                for i, rows in enumerate(rows_of):
                    weights = maps.maps(rows).flatten(0, 1)
                    add_product(dv, d_out[:, rows].transpose(1, 2), weights, first=i == 0)
                    d_scores = buffers.take("d_scores", *weights.shape)
                    torch.bmm(d_out[:, rows], values.transpose(1, 2), out=d_scores)
                    d_scores.sub_(delta[:, rows]).mul_(weights)
                    if collected is not None:
                        collected.add(d_scores.view(-1, maps.count, *d_scores.shape[1:]), samples, heads, rows)
                    add_product(dq[:, rows], d_scores, maps.key, maps.factor, first=True)
                    add_product(dk, maps.query[:, rows].transpose(1, 2), d_scores, maps.factor, first=i == 0)
            for whole, grad in ((d_key, dk), (d_value, dv)):
                place = whole[samples, heads]
                place.copy_(grad.transpose(1, 2).unflatten(0, place.shape[:2]))
        grads = [None] * len(bias.leaves) if collected is None else bias.weighted(collected.total())
        return d_query, d_key, d_value, None, None, None, None, *grads


def _like(x: Tensor, width: int | None = None) -> Tensor:
    """Memory for something like x[b,h,n,d], token by token, as the projections before and after attention want it."""
    b, h, n, d = x.shape
    return torch.empty(b, n, h, width or d, dtype=x.dtype, device=x.device).transpose(1, 2)


def _parts(capture: Capture, chunk_mib: float, planes: int) -> Iterator[tuple[slice, slice, list[slice], Maps]]:
    """Some samples and some heads at a time, the runs of query rows they are worked through in, and their maps."""
    b, h, n, m = capture.shape
    wide = wide_dtype(capture.query)
    buffers = Buffers(wide, capture.query.device)
    tiling = Tiling.choose(b, h, n, m, planes, buffers.device, chunk_mib)
    for samples in slices(b, tiling.samples):
        for heads in slices(h, tiling.groups):
            maps = Maps(capture, samples, range(heads.start, heads.stop), 1.0, buffers)
            yield samples, heads, list(slices(n, tiling.rows)), maps
