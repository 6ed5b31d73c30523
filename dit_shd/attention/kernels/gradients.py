# pyright: basic, reportArgumentType=false, reportOperatorIssue=false, reportIndexIssue=false, reportCallIssue=false
"""Gradients of attention with a bias, on a GPU: by rows (query), by keys (key, value, bias), by offsets (a whole grid).

With P = exp(S - top) / total and dO the gradient of the output O (FlashAttention-2, arXiv 2307.08691, section 3.1):

    dV = P^T dO,   dS = P * (dO V^T - rowsum(dO * O)),   dq = scale dS K,   dk = scale dS^T q,   dbias = dS

Products are of the models' own precision and accumulated in float32. A program writes addresses of its own; only a
dense bias's gradient and the one of a masked pass's table, which several programs share, are added atomically.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from dit_shd.attention.kernels.scores import (
    LN2,
    block_scores,
    dot,
    load_key,
    load_query,
    load_rows,
    places_of,
    store_rows,
    table_entry,
)


class Upstream(NamedTuple):
    """What the backward has beside query, key and bias: pointers and strides (in elements; the last axis is dense)."""

    value: Any
    """[b,h/shared,m,v]"""
    value_b: Any
    value_h: Any
    value_m: Any
    d_out: Any
    """[b,h,n,v]"""
    d_out_b: Any
    d_out_h: Any
    d_out_n: Any
    top: Any
    """[b,h,n]"""
    inverse: Any
    """[b,h,n], 1 / total"""
    delta: Any
    """[b,h,n], rowsum(dO * O)"""


@triton.jit
def load_value(up, b, key_head, cols, live, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Values [c,v] of a key head."""
    return load_rows(up.value, b * up.value_b, key_head * up.value_h, up.value_m, cols, live, WIDTH, BLOCK)


@triton.jit
def load_d_out(up, b, head, rows, live, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Gradients of the output [r,v] of a head."""
    return load_rows(up.d_out, b * up.d_out_b, head * up.d_out_h, up.d_out_n, rows, live, WIDTH, BLOCK)


@triton.jit
def block_maps(
    side, up, query, key, b, head, rows, cols, live_rows, live_cols, H, N,
    BIAS: tl.constexpr, CAUSAL: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """P [r,c] in float32."""
    at = places_of(side, rows, live_rows, CAUSAL)
    scores = block_scores(
        side, query, key, b, head, rows, cols, at, live_rows, live_cols, BIAS, CAUSAL, WHOLE, PRECISION
    )
    place = (b * H + head) * N + rows
    top = tl.load(up.top + place, mask=live_rows, other=0.0)
    inverse = tl.load(up.inverse + place, mask=live_rows, other=0.0)
    return tl.exp2(scores - top[:, None]) * inverse[:, None]


@triton.jit
def score_gradient(
    up, maps, d_out, value, b, head, rows, live_rows, live_cols, H, N, PRECISION: tl.constexpr
):  # fmt: skip
    """dS [r,c] in float32; 0 beyond the last row and key."""
    delta = tl.load(up.delta + (b * H + head) * N + rows, mask=live_rows, other=0.0)
    gradient = maps * (dot(d_out, tl.trans(value), PRECISION) - delta[:, None])
    return tl.where(live_rows[:, None] & live_cols[None, :], gradient, 0.0)


@triton.jit
def attention_rows(
    side, up, d_query, H, N, M,
    WIDTH: tl.constexpr, BLOCK_WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, BLOCK_VALUE: tl.constexpr,
    BIAS: tl.constexpr, CAUSAL: tl.constexpr, WHOLE: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradient by a block of query rows of a head: d_query[b,h,n,WIDTH]."""
    b, head = tl.program_id(2).to(tl.int64), tl.program_id(1).to(tl.int64)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live_rows = rows < N
    query = load_query(side, b, head, rows, live_rows, WIDTH, BLOCK_WIDTH)
    d_out = load_d_out(up, b, head, rows, live_rows, VALUE_WIDTH, BLOCK_VALUE)
    gradient = tl.zeros([ROWS, BLOCK_WIDTH], tl.float32)
    stop = M
    if CAUSAL:
        stop = tl.minimum(M, tl.max(places_of(side, rows, live_rows, CAUSAL)) + 1)
    for start in range(0, stop, COLS):
        cols = start + tl.arange(0, COLS)
        live_cols = cols < M
        key = load_key(side, b, head, cols, live_cols, WIDTH, BLOCK_WIDTH)
        value = load_value(up, b, head // side.shared, cols, live_cols, VALUE_WIDTH, BLOCK_VALUE)
        maps = block_maps(
            side, up, query, key, b, head, rows, cols, live_rows, live_cols, H, N, BIAS, CAUSAL, WHOLE, PRECISION
        )  # fmt: skip
        d_scores = score_gradient(up, maps, d_out, value, b, head, rows, live_rows, live_cols, H, N, PRECISION)
        gradient += dot(d_scores.to(key.dtype), key, PRECISION)
    store_rows(d_query, (b * H + head) * N + rows, gradient * (side.factor * LN2), live_rows, WIDTH, BLOCK_WIDTH)


@triton.jit
def attention_keys(
    side, up, d_key, d_value, d_bias, d_bias_b, d_bias_h, d_bias_n, d_bias_m, H, N, M, COLLECT: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK_WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, BLOCK_VALUE: tl.constexpr,
    BIAS: tl.constexpr, CAUSAL: tl.constexpr, WHOLE: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradients by a block of keys and values that `shared` heads share, and by these heads' bias.

    Args:
        d_key: [b,h/shared,m,WIDTH].
        d_value: [b,h/shared,m,VALUE_WIDTH].
        COLLECT: `none`; `dense`: into d_bias by strides, which are 0 where it broadcasts; `entries`: into the tables
            d_bias[b,h,entries]; both atomically, in float32.
    """
    b, key_head = tl.program_id(2).to(tl.int64), tl.program_id(1).to(tl.int64)
    cols = tl.program_id(0) * COLS + tl.arange(0, COLS)
    live_cols = cols < M
    key = load_key(side, b, key_head * side.shared, cols, live_cols, WIDTH, BLOCK_WIDTH)
    value = load_value(up, b, key_head, cols, live_cols, VALUE_WIDTH, BLOCK_VALUE)
    key_gradient = tl.zeros([COLS, BLOCK_WIDTH], tl.float32)
    value_gradient = tl.zeros([COLS, BLOCK_VALUE], tl.float32)
    for turn in range(side.shared):
        head = key_head * side.shared + turn
        for start in range(0, N, ROWS):
            rows = start + tl.arange(0, ROWS)
            live_rows = rows < N
            query = load_query(side, b, head, rows, live_rows, WIDTH, BLOCK_WIDTH)
            d_out = load_d_out(up, b, head, rows, live_rows, VALUE_WIDTH, BLOCK_VALUE)
            maps = block_maps(
                side, up, query, key, b, head, rows, cols, live_rows, live_cols, H, N, BIAS, CAUSAL, WHOLE, PRECISION
            )  # fmt: skip
            value_gradient += dot(tl.trans(maps).to(d_out.dtype), d_out, PRECISION)
            d_scores = score_gradient(up, maps, d_out, value, b, head, rows, live_rows, live_cols, H, N, PRECISION)
            key_gradient += dot(tl.trans(d_scores).to(query.dtype), query, PRECISION)
            inside = live_rows[:, None] & live_cols[None, :]
            if COLLECT == "dense":
                places = rows[:, None] * d_bias_n + cols[None, :] * d_bias_m
                tl.atomic_add(d_bias + b * d_bias_b + head * d_bias_h + places, d_scores, mask=inside)
            if COLLECT == "entries":
                places = table_entry(side, b, rows, cols, live_rows, live_cols)
                tl.atomic_add(d_bias + b * d_bias_b + head * d_bias_h + places, d_scores, mask=inside)
    lines = (b * (H // side.shared) + key_head) * M + cols
    store_rows(d_key, lines, key_gradient * (side.factor * LN2), live_cols, WIDTH, BLOCK_WIDTH)
    store_rows(d_value, lines, value_gradient, live_cols, VALUE_WIDTH, BLOCK_VALUE)


@triton.jit
def attention_offsets(
    side, up, lines, SIDE, H, N,
    WIDTH: tl.constexpr, BLOCK_WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, BLOCK_VALUE: tl.constexpr,
    BIAS: tl.constexpr, CAUSAL: tl.constexpr, WHOLE: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradient by a relative bias, for all tokens of a SIDE x SIDE grid: lines[b,h,x_q,offset,x_k].

    A program has one vertical offset: it adds up the blocks [x_q,x_k] of all grid lines that are so far apart.
    """
    b, head, offset = tl.program_id(2).to(tl.int64), tl.program_id(1).to(tl.int64), tl.program_id(0)
    x_q, x_k = tl.arange(0, ROWS), tl.arange(0, COLS)
    live_rows, live_cols = x_q < SIDE, x_k < SIDE
    down = offset - (SIDE - 1)  # y_k - y_q
    total = tl.zeros([ROWS, COLS], tl.float32)
    for y in range(tl.maximum(0, -down), tl.minimum(SIDE, SIDE - down)):
        rows, cols = y * SIDE + x_q, (y + down) * SIDE + x_k
        query = load_query(side, b, head, rows, live_rows, WIDTH, BLOCK_WIDTH)
        key = load_key(side, b, head, cols, live_cols, WIDTH, BLOCK_WIDTH)
        if BLOCK_WIDTH + BLOCK_VALUE <= 128:
            value = load_value(up, b, head // side.shared, cols, live_cols, VALUE_WIDTH, BLOCK_VALUE)
            d_out = load_d_out(up, b, head, rows, live_rows, VALUE_WIDTH, BLOCK_VALUE)
        maps = block_maps(
            side, up, query, key, b, head, rows, cols, live_rows, live_cols, H, N, BIAS, CAUSAL, WHOLE, PRECISION
        )  # fmt: skip
        if BLOCK_WIDTH + BLOCK_VALUE > 128:  # shared memory and registers hold two wide blocks at a time
            value = load_value(up, b, head // side.shared, cols, live_cols, VALUE_WIDTH, BLOCK_VALUE)
            d_out = load_d_out(up, b, head, rows, live_rows, VALUE_WIDTH, BLOCK_VALUE)
        total += score_gradient(up, maps, d_out, value, b, head, rows, live_rows, live_cols, H, N, PRECISION)
    line = ((b * H + head) * SIDE + x_q)[:, None] * (2 * SIDE - 1) + offset
    tl.store(lines + line * SIDE + x_k[None, :], total, mask=live_rows[:, None] & live_cols[None, :])
