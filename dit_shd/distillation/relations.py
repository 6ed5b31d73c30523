"""Sums over tiles of query rows of n x m numbers, of which none outlives its tile: memory linear in the tokens.

The forward keeps the inputs alone; the backward computes each tile once more, with its graph, and lets go of it.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dit_shd.attention.bias import DenseBias
from dit_shd.attention.capture import Capture
from dit_shd.attention.tiles import CHUNK_MIB, Tiling, full_precision, slices
from dit_shd.core import rng
from dit_shd.core.errors import UserError
from dit_shd.core.first_order import first_order
from dit_shd.core.precision import wide_dtype
from dit_shd.distillation.token_counts import ANY, reason
from dit_shd.squeezing.divergence import attention_kl
from dit_shd.squeezing.squeeze import squeeze
from dit_shd.tasks import Batch

Tile = Callable[[Sequence[Capture], Sequence[Tensor], slice], Tensor]
"""tile(student's captures, what the loss learns, query rows): any tensor, of the maps of these rows alone."""


def checked_chunk(name: str, chunk_mib: float) -> float:
    """A memory budget above 0 MiB.

    Args:
        name: The name of the loss, for the error.
        chunk_mib: As a config says.

    Raises:
        UserError: It is not above 0.
    """
    if not chunk_mib > 0:
        raise UserError(f"losses.{name}.chunk_mib: wanted a memory budget above 0 MiB, found {chunk_mib}")
    return chunk_mib


def over_rows(
    tile: Tile, student: Sequence[Capture], planes: int, learned: Sequence[Tensor] = (), chunk_mib: float = CHUNK_MIB
) -> Tensor:
    """What a function gives for each tile of query rows [tiles,...].

    Args:
        tile: The function; it may read teachers as it likes.
        student: Layers with their graph, of one n and m.
        planes: n x m planes that the function holds for a sample, teachers' and gradients' included.
        learned: Tensors of the loss that the function reads, and that learn.
        chunk_mib: Memory budget for one tile, in MiB; does not change the result beyond rounding.

    Returns:
        Its gradients reach query, key and bias of the student, and `learned`.
    """
    b, _, n, m = student[0].shape
    rows = Tiling.choose(b, 1, n, m, b * planes, student[0].query.device, chunk_mib).rows
    leaves = [x for one in student for x in (one.query, one.key, *one.bias_leaves)]
    return _OverRows.apply(tile, list(student), list(slices(n, rows)), len(leaves), *leaves, *learned)  # type: ignore[return-value]


def _rebuilt(captures: Sequence[Capture], leaves: Sequence[Tensor]) -> list[Capture]:
    """The captures over other leaves."""
    given, made = iter(leaves), []
    for capture in captures:
        query, key = next(given), next(given)
        bias = None if capture.bias is None else capture.bias.rebuilt([next(given) for _ in capture.bias.leaves])
        made.append(replace(capture, query=query, key=key, value=key, bias=bias, out=None, mixed=None))
    return made


class _OverRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        tile: Tile,
        student: list[Capture],
        rows: list[slice],
        of_captures: int,
        *leaves: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(*leaves)
        ctx.tile, ctx.student, ctx.rows, ctx.of_captures = tile, [one.detach() for one in student], rows, of_captures
        captures = _rebuilt(ctx.student, leaves[:of_captures])
        values: Tensor | None = None
        with torch.no_grad(), full_precision(leaves[0].device):
            for i, part in enumerate(rows):
                value = tile(captures, leaves[of_captures:], part)
                # one tensor for all tiles: a small one left of each would split the memory of the next
                values = value.new_empty(len(rows), *value.shape) if values is None else values
                values[i] = value
        assert values is not None
        return values

    @staticmethod
    @first_order
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]  # noqa: ANN401
        needed = ctx.needs_input_grad[4:]
        leaves = [x.detach().requires_grad_(need) for x, need in zip(ctx.saved_tensors, needed)]
        wanted = [leaf for leaf in leaves if leaf.requires_grad]
        sums = [torch.zeros_like(leaf, dtype=wide_dtype(leaf)) for leaf in wanted]
        captures = _rebuilt(ctx.student, leaves[: ctx.of_captures])
        for part, gradient in zip(ctx.rows, upstream):
            with torch.enable_grad(), full_precision(leaves[0].device):
                value = ctx.tile(captures, leaves[ctx.of_captures :], part)
            for total, share in zip(sums, torch.autograd.grad(value, wanted, gradient, allow_unused=True)):
                if share is not None:
                    total.add_(share)
        given = iter(sums)
        return (None, None, None, None, *(next(given).to(x.dtype) if x.requires_grad else None for x in leaves))


def row_mean(terms: Tensor, rows: slice, n: int, weight: Tensor | None) -> Tensor:
    """The share [b] of some query rows in a mean over all n.

    Args:
        terms: The terms of these rows [b,r].
        rows: Which.
        n: Query rows in all.
        weight: Of every row [b,n]; None: 1.
    """
    if weight is not None:
        part = weight[:, rows].to(terms)
        terms = torch.where(part > 0, terms * part, 0.0)
    return terms.sum(1) / n


def kl(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(teacher || student) over keys, of the teacher's map and the logarithm of the student's, both [...,m].

    0 in rows where the teacher sees no key.
    """
    logs = teacher.clamp(min=torch.finfo(teacher.dtype).tiny).log()
    return torch.where(teacher > 0, teacher * (logs - student), 0.0).sum(-1)


def relation_kl(student: Tensor, teacher: Tensor, weight: Tensor | None, chunk_mib: float = CHUNK_MIB) -> Tensor:
    """KL(softmax(t t^T / sqrt d) || softmax(s s^T / sqrt d)) of vectors of every head, mean over heads and rows [b].

    Args:
        student: [b,h,n,d_s].
        teacher: [b,h,n,d_t].
        weight: Of every token [b,n]; those of weight 0 are no rows and no keys.
        chunk_mib: Memory budget, in MiB.
    """
    seen = None if weight is None else DenseBias((weight > 0)[:, None, None])
    s, t = (Capture(x, x, x, x.shape[3] ** -0.5, seen) for x in (student, teacher))
    return map_kl(s, t, weight, chunk_mib)


def by_query_head(x: Tensor, heads: int) -> Tensor:
    """Keys or values [b,g,n,d] of grouped heads as [b,h,n,d], one for each query head, as they also may arrive.

    Args:
        x: Of g heads, a divisor of h, or of h.
        heads: Query heads h.
    """
    return x if x.shape[1] == heads else x.repeat_interleave(heads // x.shape[1], 1)


def map_kl(student: Capture, teacher: Capture, weight: Tensor | None, chunk_mib: float = CHUNK_MIB) -> Tensor:
    """KL of the maps of as many heads on both sides, head by head, mean over heads and query rows [b]."""
    same = squeeze(teacher, student.heads, method="constant", check=False)
    return attention_kl(teacher, student, same, chunk_mib=chunk_mib, row_weight=weight, check=False) / student.heads


def captures(name: str, student: Any, teacher: Any) -> tuple[Capture, Capture]:  # noqa: ANN401
    """The captures of two layers of the same samples and tokens.

    Args:
        name: The name of the loss, for the error.
        student: Layer of the student.
        teacher: The layer that it learns from.

    Raises:
        UserError: Other samples or tokens.
    """
    s, t = student.attention, teacher.attention
    assert s is not None and t is not None, "a loss on attention reads it"
    (b, _, n, m), (b_t, _, n_t, m_t) = s.shape, t.shape
    if (b, n, m) != (b_t, n_t, m_t):
        raise UserError(
            f"losses.{name}: wanted the same samples, query and key tokens, found {(b, n, m)} in {student.name} and "
            f"{(b_t, n_t, m_t)} in {teacher.name} of the teacher ({reason((n, m), (n_t, m_t)) if b == b_t else ANY})"
        )
    return s, t


def row_sample(share: float, n: int, seed: int, purpose: str, batch: Batch | None) -> Tensor:
    """Indices [r] of a share of n query rows, ascending: by the batch in training, by torch's generator elsewhere.

    Args:
        share: Above 0 and at most 1; at least one row is drawn.
        n: Query rows in all.
        seed: The seed of the draws.
        purpose: Another draw for each.
        batch: Of training, whose step and first sample the draw is a function of.
    """
    count = max(1, round(share * n))
    if batch is None:
        return torch.randperm(n)[:count].sort().values
    draws = rng.stream(seed, f"rows/{purpose}", batch.step, int(batch.indices[0]))
    return torch.from_numpy(draws.permutation(n)[:count]).sort().values


def row_weight(batch: Batch | None, tokens: int) -> Tensor | None:
    """The batch's weights of query rows [b,n], where there is a batch."""
    return None if batch is None else batch.row_weight(tokens)
