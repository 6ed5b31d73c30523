# pyright: basic, reportArgumentType=false, reportOperatorIssue=false, reportIndexIssue=false, reportCallIssue=false, reportGeneralTypeIssues=false
"""The divergence on a GPU: by rows (value and gradient by the query), by keys, and by the offsets of a relative bias.

    A~  = sum_i w_i A_i                   over the teacher heads of a group
    KL  = sum A~ (log A~ - S + top) + mass log total,   S the student's scores, mass = sum A~
    dKL/dS = mass B - A~                  dMSE/dS = B (G - sum B G),  G = 2 (B - A~)

Top and total of both sides' rows are known before: the two maps' difference then meets the keys in one product, and
cancels before it is rounded. A program writes addresses of its own; only gradients of a bias that several programs
share are added atomically.
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
    places_of,
    store_rows,
    table_entry,
)

TINY = tl.constexpr(1.1754943508222875e-38)


class Group(NamedTuple):
    """Student heads that stand for K teacher heads each, and what is known of the teacher's maps."""

    members: Any
    """[G,K], teacher heads."""
    students: Any
    """[G], student heads."""
    weight: Any
    """[b,h,n or 1] by strides."""
    weight_b: Any
    weight_h: Any
    weight_n: Any
    top: Any
    """[b,h,n]"""
    inverse: Any
    """[b,h,n], 1 / total"""
    heads: Any
    """h"""
    student_heads: Any
    """g"""


@triton.jit
def head_target(
    teacher, group, b, member, rows, cols, at, live_rows, live_cols, N,
    WIDTH: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
    BIAS: tl.constexpr, CAUSAL: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """w A [r,c] of one teacher head."""
    head = tl.load(group.members + member).to(tl.int64)
    place = (b * group.heads + head) * N + rows
    top = tl.load(group.top + place, mask=live_rows, other=0.0)
    inverse = tl.load(group.inverse + place, mask=live_rows, other=0.0)
    share = b * group.weight_b + head * group.weight_h + rows * group.weight_n
    weight = tl.load(group.weight + share, mask=live_rows, other=0.0)
    query = load_query(teacher, b, head, rows, live_rows, WIDTH, BLOCK_WIDTH)
    key = load_key(teacher, b, head, cols, live_cols, WIDTH, BLOCK_WIDTH)
    scores = block_scores(
        teacher, query, key, b, head, rows, cols, at, live_rows, live_cols, BIAS, CAUSAL, WHOLE, PRECISION
    )  # fmt: skip
    return tl.exp2(scores - top[:, None]) * (inverse * weight)[:, None]


@triton.jit
def block_target(
    teacher, group, b, which, rows, cols, at, live_rows, live_cols, N,
    K: tl.constexpr, UNROLLED: tl.constexpr, WIDTH: tl.constexpr, BLOCK_WIDTH: tl.constexpr,
    BIAS: tl.constexpr, CAUSAL: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """A~ [r,c] of one student head; UNROLLED: several teacher heads may be under way, which takes registers."""
    target = tl.zeros([ROWS, COLS], tl.float32)
    if UNROLLED:
        for i in tl.static_range(K):
            target += head_target(
                teacher, group, b, which * K + i, rows, cols, at, live_rows, live_cols, N,
                WIDTH, BLOCK_WIDTH, BIAS, CAUSAL, WHOLE, PRECISION,
            )  # fmt: skip
    else:
        for i in range(K):
            target += head_target(
                teacher, group, b, which * K + i, rows, cols, at, live_rows, live_cols, N,
                WIDTH, BLOCK_WIDTH, BIAS, CAUSAL, WHOLE, PRECISION,
            )  # fmt: skip
    return target


class Rows(NamedTuple):
    """What is kept of each row of a student head: [b,g,n] each."""

    top: Any
    inverse: Any
    """1 / total"""
    mass: Any
    """sum A~: 1, or 0 where the teacher hides all keys."""
    slope: Any
    """sum B G, for mse."""
    row_weight: Any
    """[b,n] by strides: what a row counts in the gradients."""
    row_weight_b: Any


@triton.jit
def row_mass(group, b, which, rows, live_rows, N, K: tl.constexpr, ROWS: tl.constexpr):
    """sum A~ [r] of one student head: the weights of the teacher's heads that see a key."""
    mass = tl.zeros([ROWS], tl.float32)
    for i in tl.static_range(K):
        head = tl.load(group.members + which * K + i).to(tl.int64)
        inverse = tl.load(group.inverse + (b * group.heads + head) * N + rows, mask=live_rows, other=0.0)
        share = b * group.weight_b + head * group.weight_h + rows * group.weight_n
        weight = tl.load(group.weight + share, mask=live_rows, other=0.0)
        mass += tl.where(inverse == 0, 0.0, weight)
    return mass


@triton.jit
def divergence_rows(
    teacher, student, group, kept, value, d_query, boost, N, M,
    ENTROPY: tl.constexpr, GRADIENTS: tl.constexpr, K: tl.constexpr,
    T_WIDTH: tl.constexpr, T_BLOCK: tl.constexpr, T_BIAS: tl.constexpr, T_CAUSAL: tl.constexpr,
    S_WIDTH: tl.constexpr, S_BLOCK: tl.constexpr, S_BIAS: tl.constexpr, S_CAUSAL: tl.constexpr,
    WHOLE: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """KL (ENTROPY) or cross-entropy of a block of rows of a student head, and its gradient by the query.

    Args:
        kept: Rows; top and inverse are read, mass is written.
        value: [b,g,n].
        d_query: [b,g,n,S_WIDTH] float32, in units of the scores over T.
        boost: Brings the gradient of the scores, about 1 / m, to where 16-bit numbers are precise; a power of two.
    """
    b, which = tl.program_id(2).to(tl.int64), tl.program_id(1)
    head = tl.load(group.students + which).to(tl.int64)
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    live_rows = rows < N
    t_at = places_of(teacher, rows, live_rows, T_CAUSAL)
    s_at = places_of(student, rows, live_rows, S_CAUSAL)
    query = load_query(student, b, head, rows, live_rows, S_WIDTH, S_BLOCK)
    place = (b * group.student_heads + head) * N + rows
    top = tl.load(kept.top + place, mask=live_rows, other=0.0)
    inverse = tl.load(kept.inverse + place, mask=live_rows, other=0.0)
    mass = row_mass(group, b, which, rows, live_rows, N, K, ROWS)
    terms = tl.zeros([ROWS], tl.float32)  # sum A~ (log2 A~ - S + top)
    gradient = tl.zeros([ROWS, S_BLOCK], tl.float32)
    stop = M
    if T_CAUSAL and S_CAUSAL:
        stop = tl.minimum(M, tl.maximum(tl.max(t_at), tl.max(s_at)) + 1)
    for start in range(0, stop, COLS):
        cols = start + tl.arange(0, COLS)
        live_cols = cols < M
        target = block_target(
            teacher, group, b, which, rows, cols, t_at, live_rows, live_cols, N,
            K, True, T_WIDTH, T_BLOCK, T_BIAS, T_CAUSAL, WHOLE, PRECISION, ROWS, COLS,
        )  # fmt: skip
        key = load_key(student, b, head, cols, live_cols, S_WIDTH, S_BLOCK)
        scores = block_scores(
            student, query, key, b, head, rows, cols, s_at, live_rows, live_cols, S_BIAS, S_CAUSAL, WHOLE, PRECISION
        )  # fmt: skip
        scores -= top[:, None]
        logs = tl.log2(tl.maximum(target, TINY)) - scores if ENTROPY else -scores
        terms += tl.sum(tl.where(target == 0, 0.0, target * logs), 1)
        if GRADIENTS:
            d_scores = tl.exp2(scores) * (inverse * mass * boost)[:, None] - target * boost
            gradient += dot(d_scores.to(key.dtype), key, PRECISION)
    seen = inverse != 0  # NaN stays NaN
    terms = LN2 * (terms - tl.where(seen, tl.log2(inverse), 0.0) * mass)
    tl.store(kept.mass + place, mass, mask=live_rows)
    tl.store(value + place, terms, mask=live_rows)
    if GRADIENTS:
        store_rows(d_query, place, gradient / boost, live_rows, S_WIDTH, S_BLOCK)


@triton.jit
def block_gradient(
    student, group, kept, target, b, head, rows, cols, live_rows, live_cols, query, key, N,
    SQUARED: tl.constexpr, S_BIAS: tl.constexpr, S_CAUSAL: tl.constexpr, WHOLE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The divergence's gradient by the student's scores over T [r,c]."""
    s_at = places_of(student, rows, live_rows, S_CAUSAL)
    scores = block_scores(
        student, query, key, b, head, rows, cols, s_at, live_rows, live_cols, S_BIAS, S_CAUSAL, WHOLE, PRECISION
    )  # fmt: skip
    place = (b * group.student_heads + head) * N + rows
    top = tl.load(kept.top + place, mask=live_rows, other=0.0)
    inverse = tl.load(kept.inverse + place, mask=live_rows, other=0.0)
    mass = tl.load(kept.mass + place, mask=live_rows, other=0.0)
    maps = tl.exp2(scores - top[:, None]) * inverse[:, None]
    if SQUARED:
        slope = tl.load(kept.slope + place, mask=live_rows, other=0.0)
        gradient = maps * (2 * (maps - target) - slope[:, None]) * tl.where(mass == 0, 0.0, 1.0)[:, None]
    else:
        gradient = maps * mass[:, None] - target
    counts = tl.load(kept.row_weight + b * kept.row_weight_b + rows, mask=live_rows, other=0.0)
    inside = (counts > 0)[:, None] & live_cols[None, :]
    return tl.where(inside, gradient * counts[:, None], 0.0)


@triton.jit
def divergence_keys(
    teacher, student, group, kept, d_key, d_bias, d_bias_b, d_bias_h, d_bias_n, d_bias_m, boost, N, M,
    COLLECT: tl.constexpr, SQUARED: tl.constexpr, K: tl.constexpr,
    T_WIDTH: tl.constexpr, T_BLOCK: tl.constexpr, T_BIAS: tl.constexpr, T_CAUSAL: tl.constexpr,
    S_WIDTH: tl.constexpr, S_BLOCK: tl.constexpr, S_BIAS: tl.constexpr, S_CAUSAL: tl.constexpr,
    WHOLE: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The divergence's gradient by a block of keys of a student head, and by its bias.

    Args:
        d_key: [b,g,m,S_WIDTH] float32, in units of the scores over T.
        boost: As in divergence_rows.
        COLLECT: `none`; `dense`: into d_bias by strides; `entries`: into the tables d_bias[b,g,entries]; both
            atomically.
    """
    b, which = tl.program_id(2).to(tl.int64), tl.program_id(1)
    head = tl.load(group.students + which).to(tl.int64)
    cols = tl.program_id(0) * COLS + tl.arange(0, COLS)
    live_cols = cols < M
    key = load_key(student, b, head, cols, live_cols, S_WIDTH, S_BLOCK)
    gradient = tl.zeros([COLS, S_BLOCK], tl.float32)
    for start in range(0, N, ROWS):
        rows = start + tl.arange(0, ROWS)
        live_rows = rows < N
        query = load_query(student, b, head, rows, live_rows, S_WIDTH, S_BLOCK)
        target = block_target(
            teacher, group, b, which, rows, cols, places_of(teacher, rows, live_rows, T_CAUSAL), live_rows, live_cols,
            N, K, True, T_WIDTH, T_BLOCK, T_BIAS, T_CAUSAL, WHOLE, PRECISION, ROWS, COLS,
        )  # fmt: skip
        d_scores = block_gradient(
            student, group, kept, target, b, head, rows, cols, live_rows, live_cols, query, key, N,
            SQUARED, S_BIAS, S_CAUSAL, WHOLE, PRECISION,
        )  # fmt: skip
        gradient += dot(tl.trans(d_scores * boost).to(query.dtype), query, PRECISION)
        inside = live_rows[:, None] & live_cols[None, :]
        if COLLECT == "dense":
            places = rows[:, None] * d_bias_n + cols[None, :] * d_bias_m
            tl.atomic_add(d_bias + b * d_bias_b + head * d_bias_h + places, d_scores, mask=inside)
        if COLLECT == "entries":
            places = table_entry(student, b, rows, cols, live_rows, live_cols)
            tl.atomic_add(d_bias + b * d_bias_b + head * d_bias_h + places, d_scores, mask=inside)
    lines = (b * group.student_heads + head) * M + cols
    store_rows(d_key, lines, gradient / boost, live_cols, S_WIDTH, S_BLOCK)


@triton.jit
def divergence_offsets(
    teacher, student, group, kept, lines, SIDE, N,
    SQUARED: tl.constexpr, K: tl.constexpr, UNROLLED: tl.constexpr,
    T_WIDTH: tl.constexpr, T_BLOCK: tl.constexpr, T_BIAS: tl.constexpr, T_CAUSAL: tl.constexpr,
    S_WIDTH: tl.constexpr, S_BLOCK: tl.constexpr, S_BIAS: tl.constexpr, S_CAUSAL: tl.constexpr,
    WHOLE: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The divergence's gradient by a relative bias, for all tokens of a SIDE x SIDE grid.

    A program has one vertical offset: it adds up the blocks [x_q,x_k] of all grid lines that are so far apart, and
    writes their sum: lines[b,g,x_q,offset,x_k]. No two programs meet.
    """
    b, which, offset = tl.program_id(2).to(tl.int64), tl.program_id(1), tl.program_id(0)
    head = tl.load(group.students + which).to(tl.int64)
    x_q, x_k = tl.arange(0, ROWS), tl.arange(0, COLS)
    live_rows, live_cols = x_q < SIDE, x_k < SIDE
    down = offset - (SIDE - 1)  # y_k - y_q
    total = tl.zeros([ROWS, COLS], tl.float32)
    for y in range(tl.maximum(0, -down), tl.minimum(SIDE, SIDE - down)):
        rows, cols = y * SIDE + x_q, (y + down) * SIDE + x_k
        target = block_target(
            teacher, group, b, which, rows, cols, places_of(teacher, rows, live_rows, T_CAUSAL), live_rows, live_cols,
            N, K, UNROLLED, T_WIDTH, T_BLOCK, T_BIAS, T_CAUSAL, WHOLE, PRECISION, ROWS, COLS,
        )  # fmt: skip
        query = load_query(student, b, head, rows, live_rows, S_WIDTH, S_BLOCK)  # after the teacher's: room for one
        key = load_key(student, b, head, cols, live_cols, S_WIDTH, S_BLOCK)
        total += block_gradient(
            student, group, kept, target, b, head, rows, cols, live_rows, live_cols, query, key, N,
            SQUARED, S_BIAS, S_CAUSAL, WHOLE, PRECISION,
        )  # fmt: skip
    line = ((b * group.student_heads + head) * SIDE + x_q)[:, None] * (2 * SIDE - 1) + offset
    tl.store(lines + line * SIDE + x_k[None, :], total, mask=live_rows[:, None] & live_cols[None, :])
