# pyright: basic, reportArgumentType=false, reportOperatorIssue=false, reportIndexIssue=false, reportCallIssue=false
"""The squared difference of maps by rows, on a GPU; divergence.py has its gradients by keys and offsets."""

import triton
import triton.language as tl

from dit_shd.attention.kernels.scores import block_scores, dot, load_key, load_query, places_of, store_rows
from dit_shd.squeezing.kernels.divergence import block_target


@triton.jit
def product(maps, x, PRECISION: tl.constexpr):
    """maps[r,c] @ x[c,d] in float32; 16-bit x meet the maps as two 16-bit numbers, so that only x is rounded."""
    high = maps.to(x.dtype)
    total = dot(high, x, PRECISION)
    if x.dtype != tl.float32:
        total += dot((maps - high.to(tl.float32)).to(x.dtype), x, PRECISION)
    return total


@triton.jit
def squared_rows(
    teacher, student, group, kept, value, d_query, N, M,
    GRADIENTS: tl.constexpr, K: tl.constexpr,
    T_WIDTH: tl.constexpr, T_BLOCK: tl.constexpr, T_BIAS: tl.constexpr, T_CAUSAL: tl.constexpr,
    S_WIDTH: tl.constexpr, S_BLOCK: tl.constexpr, S_BIAS: tl.constexpr, S_CAUSAL: tl.constexpr,
    WHOLE: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The squared difference of the maps of a block of rows of a student head, and its gradient by the query.

    Args:
        kept: Rows; top and inverse are read, mass and slope are written.
        value: [b,g,n].
        d_query: [b,g,n,S_WIDTH] float32, in units of the scores over T.
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
    mass = tl.zeros([ROWS], tl.float32)
    terms = tl.zeros([ROWS], tl.float32)
    slope = tl.zeros([ROWS], tl.float32)
    pulled = tl.zeros([ROWS, S_BLOCK], tl.float32)  # (B G) K
    by_student = tl.zeros([ROWS, S_BLOCK], tl.float32)  # B K
    for start in range(0, M, COLS):
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
        maps = tl.exp2(scores - top[:, None]) * inverse[:, None]
        gap = maps - target
        terms += tl.sum(gap * gap, 1)
        slope += tl.sum(2 * maps * gap, 1)
        if GRADIENTS:
            pulled += product(2 * maps * gap, key, PRECISION)
            by_student += product(maps, key, PRECISION)
        mass += tl.sum(target, 1)
    counts = tl.where(mass == 0, 0.0, 1.0)  # rows that the teacher hides altogether count as nothing
    tl.store(kept.slope + place, slope * counts, mask=live_rows)
    tl.store(kept.mass + place, mass, mask=live_rows)
    tl.store(value + place, terms * counts, mask=live_rows)
    if GRADIENTS:
        gradient = (pulled - by_student * slope[:, None]) * counts[:, None]
        store_rows(d_query, place, gradient, live_rows, S_WIDTH, S_BLOCK)
