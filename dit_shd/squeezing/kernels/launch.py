# pyright: basic, reportArgumentType=false, reportOperatorIssue=false, reportIndexIssue=false, reportCallIssue=false
"""The divergence as an operator of torch: opaque to torch.compile, with shapes for its fake tensors.

A capture comes as six tensors and three facts (attention/kernels); everything else is plain numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from dit_shd.attention.kernels.blocks import Blocks, capability_here
from dit_shd.attention.kernels.launch import PRECISION, broadcast_strides, launched, side
from dit_shd.attention.kernels.scores import Side
from dit_shd.attention.tiles import index_tensor
from dit_shd.squeezing.kernels import divergence as kernels
from dit_shd.squeezing.kernels.blocks import is_unrolled, of_keys, of_rows
from dit_shd.squeezing.kernels.squared import squared_rows
from dit_shd.squeezing.plans import by_size


@torch.library.custom_op("dit_shd::attention_divergence", mutates_args=())
def divergence(
    teacher: Sequence[Tensor],
    t_bias: str,
    t_causal: bool,
    t_numbers: Sequence[float],
    t_offset: int,
    student: Sequence[Tensor],
    s_bias: str,
    s_causal: bool,
    s_numbers: Sequence[float],
    s_offset: int,
    weight: Tensor,
    top: Tensor,
    inverse: Tensor,
    student_top: Tensor,
    student_inverse: Tensor,
    row_weight: Tensor,
    plan: Sequence[int],
    measure: str,
    gradients: bool,
    collect: str,
    d_bias_shape: Sequence[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The divergence of every row [b,g,n] and, if wanted, its gradients by query, key and bias.

    Args:
        teacher: Six tensors of its capture; the student's s_bias and so on are as its t_bias and so on.
        t_numbers: Factor of its scores, and of its bias.
        weight: Of teacher heads in their student heads [b,h,n or 1].
        top: The largest scores of the teacher's rows at this temperature [b,h,n].
        inverse: One over the sums of their exponentials [b,h,n].
        student_top: The same of the student's rows [b,g,n], as student_inverse.
        row_weight: What every query row counts in d_key and d_bias [b or 1,n].
        plan: The student head of each teacher head [h].
        measure: The divergence: kl, cross_entropy or mse.
        collect: How the bias's gradient, of d_bias_shape, is gathered: none, dense, entries or lines.

    Returns:
        Terms [b,g,n]; d_query [b,g,n,d], d_key [b,g,m,d] and d_bias in float32, in units of the scores over T.
    """
    query, key = student[0], student[1]
    (b, g, n, d), (h, d_t), m = query.shape, teacher[0].shape[1::2], key.shape[2]
    terms, mass, slope = query.new_empty(3, b, g, n, dtype=torch.float32).unbind()
    d_query, d_key = (terms.new_empty(b, g, x, d) if gradients else terms.new_empty(0) for x in (n, m))
    d_bias = (torch.zeros if collect in ("dense", "entries") else torch.empty)(list(d_bias_shape), device=terms.device)
    kept = kernels.Rows(
        student_top, student_inverse, mass, slope, row_weight,
        row_weight.stride(0) if row_weight.shape[0] > 1 else 0,
    )  # fmt: skip
    sides = side(teacher, t_bias, *t_numbers, t_offset), side(student, s_bias, *s_numbers, s_offset)
    widths = dict(T_WIDTH=d_t, T_BLOCK=Blocks.width(d_t), S_WIDTH=d, S_BLOCK=Blocks.width(d))
    facts = dict(T_BIAS=t_bias, T_CAUSAL=t_causal, S_BIAS=s_bias, S_CAUSAL=s_causal, PRECISION=PRECISION)
    layer = _Layer(*sides, kept, measure, query.dtype, teacher[0].dtype, (b, n, m), widths | facts)
    for members, students in groups_by_size(plan, query.device):
        group = kernels.Group(
            members, students, weight, weight.stride(0), weight.stride(1),
            weight.stride(2) if weight.shape[2] > 1 else 0, top, inverse, h, g,
        )  # fmt: skip
        layer.rows(group, terms, d_query if gradients else None)
        if gradients:
            layer.keys(group, d_key, d_bias, collect)
        if collect == "lines":
            layer.offsets(group, d_bias)
    return terms, d_query, d_key, d_bias


@dataclass(frozen=True, eq=False)
class _Layer:
    """What all launches of a layer share."""

    teacher: Side
    student: Side
    kept: kernels.Rows
    measure: str
    dtype: torch.dtype
    """Of the student's queries and keys."""
    teacher_dtype: torch.dtype
    size: tuple[int, int, int]
    """(b, n, m)"""
    fixed: dict[str, Any]
    """Constants of the kernels: widths, biases, causality, precision."""

    @property
    def wider(self) -> torch.dtype:
        """The precision that the blocks must have room for."""
        return torch.promote_types(self.dtype, self.teacher_dtype)

    @property
    def boost(self) -> float:
        """Brings gradients of the scores, about 1 / m, to where 16-bit numbers are precise."""
        return 1.0 if self.dtype == torch.float32 else float(2 ** min(14, self.size[2].bit_length() - 1))

    @property
    def bias(self) -> str:
        """What blocks are made for: dense, if either side's is."""
        kinds = (self.fixed["T_BIAS"], self.fixed["S_BIAS"])
        return "dense" if "dense" in kinds else kinds[1]

    def rows(self, group: kernels.Group, terms: Tensor, d_query: Tensor | None) -> None:
        (b, n, m), (count, k) = self.size, group.members.shape
        blocks = of_rows(self.fixed["T_WIDTH"], self.fixed["S_WIDTH"], self.wider, self.measure, self.bias).here()
        kernel = squared_rows if self.measure == "mse" else kernels.divergence_rows
        entropy = {} if self.measure == "mse" else {"ENTROPY": self.measure == "kl"}
        boost = [] if self.measure == "mse" else [self.boost]
        launched(kernel, (triton.cdiv(n, blocks.rows), count, b), terms)(
            self.teacher, self.student, group, self.kept, terms, terms if d_query is None else d_query, *boost, n, m,
            GRADIENTS=d_query is not None, K=k, WHOLE=m % blocks.cols == 0,
            **entropy, **blocks.options(), **self.fixed,
        )  # fmt: skip

    def keys(self, group: kernels.Group, d_key: Tensor, d_bias: Tensor, collect: str) -> None:
        (b, n, m), (count, k) = self.size, group.members.shape
        strides = broadcast_strides(d_bias)
        strides = {"dense": strides, "entries": [*strides[:2], 0, 0]}.get(collect, [0] * 4)
        blocks = of_keys(self.fixed["T_WIDTH"], self.fixed["S_WIDTH"], self.wider, self.bias, k).here()
        launched(kernels.divergence_keys, (triton.cdiv(m, blocks.cols), count, b), d_key)(
            self.teacher, self.student, group, self.kept, d_key, d_bias, *strides, self.boost, n, m,
            COLLECT="none" if collect == "lines" else collect, SQUARED=self.measure == "mse", K=k,
            WHOLE=m % blocks.cols == 0,
            **blocks.options(), **self.fixed,
        )  # fmt: skip

    def offsets(self, group: kernels.Group, lines: Tensor) -> None:
        (b, n, _), (count, k), window = self.size, group.members.shape, lines.shape[2]
        blocks = Blocks.of_offsets(window).here()
        launched(kernels.divergence_offsets, (2 * window - 1, count, b), lines)(
            self.teacher, self.student, group, self.kept, lines, window, n,
            SQUARED=self.measure == "mse", K=k, UNROLLED=is_unrolled(blocks, capability_here()),
            WHOLE=blocks.cols == window, **blocks.options(), **self.fixed,
        )  # fmt: skip


@divergence.register_fake
def _(teacher, t_bias, t_causal, t_numbers, t_offset, student, s_bias, s_causal, s_numbers, s_offset, weight,
      top, inverse, student_top, student_inverse, row_weight, plan, measure, gradients, collect, d_bias_shape):  # type: ignore[no-untyped-def]  # fmt: skip
    query, key = student[0], student[1]
    terms = query.new_empty(query.shape[:3], dtype=torch.float32)
    nothing = terms.new_empty(0)
    d_query = terms.new_empty(query.shape) if gradients else nothing
    d_key = terms.new_empty(query.shape[0], query.shape[1], *key.shape[2:]) if gradients else nothing.clone()
    return terms, d_query, d_key, terms.new_empty(list(d_bias_shape))


def groups_by_size(plan: Sequence[int], device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """Groups of one size together: their teacher heads [G,k] and student heads [G], int32."""
    groups = tuple(tuple(i for i, g in enumerate(plan) if g == student) for student in range(max(plan) + 1))
    pairs: list[tuple[Tensor, Tensor]] = []
    for k, students in by_size(groups):
        members = tuple(head for g in students for head in groups[g])
        at = [index_tensor(heads, device, torch.int32) for heads in (members, tuple(students))]
        pairs.append((at[0].view(-1, k), at[1]))
    return pairs
