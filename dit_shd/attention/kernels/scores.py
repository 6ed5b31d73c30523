# pyright: basic, reportArgumentType=false, reportOperatorIssue=false, reportIndexIssue=false, reportCallIssue=false, reportGeneralTypeIssues=false
"""Blocks of scores on a GPU, and attention with several values to a map.

A map is never written: a program holds one block of scores of each head that it needs, in float32, and every program
writes addresses of its own. A = exp(S - top) / total, where top and total of a row are found once (online softmax,
arXiv 1805.02867). Two numbers stand for a row's log-sum-exp: beside a top of -1e38 (a row that a mask hides altogether)
the logarithm of the total would be lost. Scores and tops are in powers of two, S log2(e): a GPU computes 2^x.
Samples and heads are counted in 64 bits, rows of a head in 32 (captures.py refuses what is larger).
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

MINUS_INFINITY = tl.constexpr(float("-inf"))
LN2 = tl.constexpr(0.6931471805599453)
"""Of powers of two in powers of e."""
LOWEST = tl.constexpr(-3.4028234663852886e38)


class Side(NamedTuple):
    """One capture as the kernels take it: pointers and strides (in elements; the last axis is contiguous)."""

    query: Any
    """[b,h,n,d]"""
    query_b: Any
    query_h: Any
    query_n: Any
    key: Any
    """[b,h/shared,m,d]"""
    key_b: Any
    key_h: Any
    key_m: Any
    shared: Any
    """Query heads to a key head."""
    factor: Any
    """scale log2(e) / T"""
    bias: Any
    """Dense: [b,h,n,m] by strides, which are 0 where it broadcasts. Relative: the table [h,entries]. Lines: [h,...]."""
    bias_b: Any
    bias_h: Any
    bias_n: Any
    bias_m: Any
    bias_factor: Any
    """log2(e) / T"""
    query_code: Any
    """[b,n]: index into the table = query_code - key_code + offset. Lines: [n], index = query_code + key."""
    query_code_b: Any
    key_code: Any
    key_code_b: Any
    offset: Any
    positions: Any
    """[n], the places of the query rows in their sequence; read by causal attention alone."""


@triton.jit
def load_rows(x, start_b, start_h, stride, rows, live, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Rows [r,BLOCK] of one sample and head; zeros beyond WIDTH and where not live."""
    dims = tl.arange(0, BLOCK)
    places = rows[:, None] * stride + dims[None, :]
    return tl.load(x + start_b + start_h + places, mask=live[:, None] & (dims[None, :] < WIDTH), other=0.0)


@triton.jit
def store_rows(x, places, rows, live, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Write rows [r,BLOCK] to x[..., WIDTH] at these places [r], counted in rows."""
    dims = tl.arange(0, BLOCK)
    tl.store(x + places[:, None] * WIDTH + dims[None, :], rows, mask=live[:, None] & (dims[None, :] < WIDTH))


@triton.jit
def load_query(side, b, head, rows, live, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Query rows [r,d] of a head."""
    return load_rows(side.query, b * side.query_b, head * side.query_h, side.query_n, rows, live, WIDTH, BLOCK)


@triton.jit
def load_key(side, b, head, cols, live, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    """Keys [c,d] of a head, which several heads may share."""
    shared = head // side.shared
    return load_rows(side.key, b * side.key_b, shared * side.key_h, side.key_m, cols, live, WIDTH, BLOCK)


@triton.jit
def table_entry(side, b, rows, cols, live_rows, live_cols):
    """Places in the table of a relative bias [r,c]."""
    query_code = tl.load(side.query_code + b * side.query_code_b + rows, mask=live_rows, other=0)
    key_code = tl.load(side.key_code + b * side.key_code_b + cols, mask=live_cols, other=0)
    return query_code[:, None] - key_code[None, :] + side.offset


@triton.jit
def dot(a, b, PRECISION: tl.constexpr):
    """a @ b in float32; "widened": of float32 operands, for Triton's interpreter, whose bfloat16 products are wrong."""
    if PRECISION == "widened":
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision="ieee")
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def block_scores(
    side, query, key, b, head, rows, cols, at, live_rows, live_cols,
    BIAS: tl.constexpr, CAUSAL: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """S log2(e) / T [r,c] in float32; minus infinity where a key is hidden or beyond the last (WHOLE: none is)."""
    scores = dot(query, tl.trans(key), PRECISION) * side.factor
    inside = live_rows[:, None] & live_cols[None, :]
    if BIAS == "dense":
        places = rows[:, None] * side.bias_n + cols[None, :] * side.bias_m
        start = b * side.bias_b + head * side.bias_h
        bias = tl.load(side.bias + start + places, mask=inside, other=0.0).to(tl.float32)
        # what is finite stays finite: rows that are masked by finfo.min do not become rows of infinity
        scores += tl.where(bias == MINUS_INFINITY, bias, tl.maximum(bias * side.bias_factor, LOWEST))
    if BIAS == "lines":
        start = tl.multiple_of(tl.load(side.query_code + rows, mask=live_rows, other=0), 4)  # so 16 bytes at once
        live = live_rows[:, None] if WHOLE else inside
        places = start[:, None] + cols[None, :]
        scores += (
            tl.load(side.bias + head * side.bias_h + places, mask=live, other=0.0).to(tl.float32) * side.bias_factor
        )
    if BIAS == "relative":
        places = table_entry(side, b, rows, cols, live_rows, live_cols)
        bias = tl.load(side.bias + head * side.bias_h + places, mask=inside, other=0.0).to(tl.float32)
        scores += bias * side.bias_factor
    if CAUSAL:
        scores = tl.where(cols[None, :] <= at[:, None], scores, MINUS_INFINITY)
    if WHOLE:
        return scores
    return tl.where(live_cols[None, :], scores, MINUS_INFINITY)


@triton.jit
def places_of(side, rows, live, CAUSAL: tl.constexpr):
    """Where in its sequence each query row stands."""
    if CAUSAL:
        return tl.load(side.positions + rows, mask=live, other=-1)
    return rows


@triton.jit
def attend_values(
    side, value, value_b, value_h, value_m, heads, partners, out, out_b, out_h, out_v, out_n, top_out, inverse_out,
    H, N, M, VALUES: tl.constexpr, WIDTH: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
    VALUE_WIDTH: tl.constexpr, BLOCK_VALUE: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
    BIAS: tl.constexpr, CAUSAL: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A_i V_a of a block of rows of head i for VALUES values a (flash attention), and each row's top and 1 / total.

    Args:
        heads: [H], the heads i.
        partners: [H,VALUES], the key heads whose values they are; -1 for none. VALUES 0: top and 1 / total alone.
        out: [b,H,VALUES,n,VALUE_WIDTH] by strides.
        top_out: [b,H,n].
        inverse_out: [b,H,n], 1 / total; 0 where all keys are hidden.
    """
    b, slot = tl.program_id(2).to(tl.int64), tl.program_id(1).to(tl.int64)
    head = tl.load(heads + slot).to(tl.int64)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live_rows = rows < N
    at = places_of(side, rows, live_rows, CAUSAL)
    query = load_query(side, b, head, rows, live_rows, WIDTH, BLOCK_WIDTH)
    top = tl.full([ROWS], MINUS_INFINITY, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    if VALUES > 0:
        lanes = tl.arange(0, VALUES * BLOCK_VALUE)
        which, dims = lanes // BLOCK_VALUE, lanes % BLOCK_VALUE
        shift = tl.zeros([VALUES * BLOCK_VALUE], tl.int64)  # by scalars, so that rows are still read 16 bytes at once
        met = dims < VALUE_WIDTH
        for v in tl.static_range(VALUES):
            partner = tl.load(partners + slot * VALUES + v)
            shift = tl.where(which == v, partner.to(tl.int64) * value_h, shift)
            met = met & (tl.where(which == v, partner, 0) >= 0)
        acc = tl.zeros([ROWS, VALUES * BLOCK_VALUE], tl.float32)
    stop = M
    if CAUSAL:
        stop = tl.minimum(M, tl.max(at) + 1)
    for start in range(0, stop, COLS):
        cols = start + tl.arange(0, COLS)
        live_cols = cols < M
        key = load_key(side, b, head, cols, live_cols, WIDTH, BLOCK_WIDTH)
        scores = block_scores(
            side, query, key, b, head, rows, cols, at, live_rows, live_cols, BIAS, CAUSAL, WHOLE, PRECISION
        )  # fmt: skip
        new = tl.maximum(top, tl.max(scores, 1))
        base = tl.where(new == MINUS_INFINITY, 0.0, new)
        maps = tl.exp2(scores - base[:, None])
        shrink = tl.exp2(top - base)
        total = total * shrink + tl.sum(maps, 1)
        if VALUES > 0:
            places = shift[None, :] + cols[:, None] * value_m + dims[None, :]
            values = tl.load(value + b * value_b + places, mask=live_cols[:, None] & met[None, :], other=0.0)
            acc = acc * shrink[:, None] + dot(maps.to(values.dtype), values, PRECISION)
        top = new
    seen = total != 0  # NaN stays NaN
    inverse = tl.where(seen, 1.0 / total, 0.0)
    place = (b * H + slot) * N + rows
    tl.store(top_out + place, tl.where(seen, top, 0.0), mask=live_rows)
    tl.store(inverse_out + place, inverse, mask=live_rows)
    if VALUES > 0:
        places = (which * out_v + dims)[None, :] + rows[:, None] * out_n
        live = live_rows[:, None] & met[None, :]
        tl.store(out + b * out_b + slot * out_h + places, acc * inverse[:, None], mask=live)
