"""Softmax attention with an additive bias, over chunks of query rows: no h x n x m tensor outlives its chunk.

The forward is PyTorch's scaled_dot_product_attention on one chunk of rows at a time. The backward recomputes a
chunk's map from q, k and the bias and differentiates it by hand, because the stock kernels either keep the map or
refuse a bias that needs a gradient. With P = softmax(S), S = scale q k^T + bias and dO the output's gradient:

    dV = P^T dO,   dS = P * (dO V^T - rowsum(dO * O)),   dq = scale dS K,   dk = scale dS^T q,   dbias = dS
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dit_shd.attention.bias import Bias, DenseBias
from dit_shd.attention.softmax import softmax

CHUNK_MIB = 64
"""Memory budget of one chunk of scores, in MiB of float32."""


def row_chunks(b: int, h: int, n: int, m: int, chunk_mib: float = CHUNK_MIB) -> Iterator[slice]:
    """Slices of query rows, evenly sized, whose float32 scores [b,h,r,m] fit into `chunk_mib` MiB (one row or more)."""
    if chunk_mib <= 0:
        raise ValueError(f"chunk_mib: wanted a memory budget above 0 MiB, found {chunk_mib}")
    most = max(1, int(chunk_mib * 2**20 / (4 * b * h * m)))
    count = -(-n // most)
    size = -(-n // count)
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    bias: Bias | None = None,
    chunk_mib: float = CHUNK_MIB,
) -> Tensor:
    """softmax(scale q k^T + bias) v.

    Args:
        query: [b,h,n,d]. key, value: [b,h,m,d].
        scale: factor of the scores. bias: added to them, or nothing.
        chunk_mib: memory budget for the scores of one chunk, in MiB.

    Returns:
        [b,h,n,d]. Gradients reach query, key, value and the bias's leaves.
    """
    if bias is None:
        return F.scaled_dot_product_attention(query, key, value, scale=scale)
    if torch.is_autocast_enabled(query.device.type):
        low = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(low), key.to(low), value.to(low)
    return _StreamedAttention.apply(query, key, value, scale, bias, chunk_mib, *bias.leaves)  # type: ignore[return-value]


class _StreamedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float,
        bias: Bias,
        chunk_mib: float,
        *leaves: Tensor,
    ) -> Tensor:
        b, h, n, _ = query.shape
        chunks = list(row_chunks(b, h, n, key.shape[2], chunk_mib))
        parts = [
            F.scaled_dot_product_attention(
                query[:, :, rows], key, value, attn_mask=bias.rows(rows).to(query.dtype), scale=scale
            )
            for rows in chunks
        ]
        output = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)
        ctx.save_for_backward(query, key, value, output)
        ctx.scale, ctx.bias, ctx.chunks = scale, bias, chunks
        return output

    @staticmethod
    def backward(ctx: Any, d_output: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        query, key, value, output = ctx.saved_tensors
        bias: Bias = ctx.bias
        wide = torch.promote_types(query.dtype, torch.float32)
        d_query, d_key, d_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        grads = bias.zero_grads() if bias.needs_grad() else []
        for rows in ctx.chunks:
            q, d_out = query[:, :, rows], d_output[:, :, rows]
            scores = (q.to(wide) @ key.to(wide).transpose(2, 3)).mul_(ctx.scale)
            weights = softmax(scores.add_(bias.rows(rows).to(query.dtype)), masks=isinstance(bias, DenseBias))
            low = weights.to(query.dtype)
            d_value += low.transpose(2, 3) @ d_out
            delta = (d_out * output[:, :, rows]).sum(-1, keepdim=True, dtype=wide)
            d_scores = (d_out @ value.transpose(2, 3)).to(wide).sub_(delta).mul_(weights)
            if grads:
                bias.accumulate(grads, rows, d_scores)
            low = d_scores.mul_(ctx.scale).to(query.dtype)
            d_query[:, :, rows] = low @ key
            d_key += low.transpose(2, 3) @ q
        leaf_grads = [g.to(x.dtype) for g, x in zip(grads, bias.leaves)] or [None] * len(bias.leaves)
        return d_query, d_key, d_value, None, None, None, *leaf_grads
