"""From h teacher heads to g student heads: the closed-form weights of Squeezing-Heads Distillation and its ablations.

Paper: arXiv 2502.07436, eq. 5-9. Every method is a matrix w [b,g,h] with A~_g = sum_h w[b,g,h] A_h. Each teacher head
belongs to exactly one student head, so w is determined by one weight for each teacher head, and the groups.
plans.py has the groups, products.py inner products of the teacher's outputs, weights.py the weights from these.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from dit_shd.attention.capture import Capture, one_layer
from dit_shd.attention.kernels.captures import unfit
from dit_shd.attention.tiles import CHUNK_MIB, Buffers, index_tensor
from dit_shd.core.errors import UserError
from dit_shd.core.precision import wide_dtype
from dit_shd.squeezing import products, weights
from dit_shd.squeezing.kernels.captures import row_sums
from dit_shd.squeezing.kernels.products import by_kernels
from dit_shd.squeezing.plans import Plan, by_size, check_plan, contiguous
from dit_shd.squeezing.projections import Projections

Method = Literal["pairwise", "joint", "per_query", "constant", "hard"]
Backend = Literal["streamed", "fused", "triton"]
PlanLike = Literal["contiguous"] | Sequence[Sequence[int]]
"""Contiguous groups, or a list of groups of head numbers."""


@dataclass(frozen=True, eq=False)
class Squeeze:
    """Weights that merge teacher heads into student heads, with diagnostics."""

    weight: Tensor
    """Weight of every teacher head in its student head [b,h,n or 1]; the weights of a group sum to 1."""
    group: Tensor
    """The student head of each teacher head [h]."""
    plan: Plan
    """The teacher heads of each student head."""
    alpha: Tensor | None = None
    """Alpha of each pairwise merge [b, merges], in the plan's order: the weight of the heads merged before."""
    clamped: Tensor | None = None
    """Where alpha was outside of [0, 1] [b, merges]."""
    residual: Tensor | None = None
    """||A~_g sum_i X_i - sum_i A_i X_i|| / ||sum_i A_i X_i|| over the heads i of each group [b,g]."""
    row_sums: tuple[Tensor, Tensor] | None = field(default=None, repr=False)
    """Maximum and 1/sum of the exponentials of every row's scores [b,h,n] each, for attention_kl, if computed."""
    maps: dict[int, Tensor] = field(default_factory=dict, repr=False)
    """Maps [b, heads, n, m] of the groups of each size, for attention_kl on this capture, if they were kept."""
    of: Capture | None = field(default=None, repr=False)
    """The capture that row_sums and maps are of, where there are any: of another one they are not used."""

    @property
    def heads(self) -> int:
        """The number of student heads g."""
        return len(self.plan)

    @property
    def w(self) -> Tensor:
        """The weights as a dense matrix w [b,g,h,n or 1]."""
        member = torch.nn.functional.one_hot(self.group, self.heads).t()  # [g,h]
        return self.weight[:, None] * member[None, :, :, None]

    def mix(self, maps: Tensor, rows: slice = slice(None)) -> Tensor:
        """Squeeze the maps [b,h,r,m] of some query rows into A~ [b,g,r,m]."""
        weight = self.weight if self.weight.shape[2] == 1 else self.weight[:, :, rows]
        weighted = maps * weight[..., None].to(maps.dtype)
        b, _, r, m = maps.shape
        return weighted.new_zeros(b, self.heads, r, m).index_add_(1, self.group, weighted)


def squeeze(
    capture: Capture,
    heads: int,
    plan: PlanLike = "contiguous",
    method: Method = "pairwise",
    clamp: bool = True,
    seed: int = 0,
    backend: Backend = "streamed",
    chunk_mib: float = CHUNK_MIB,
    keep_maps: bool = False,
    projections: Projections | None = None,
    row_weight: Tensor | None = None,
    check: bool = True,
    buffers: Buffers | None = None,
) -> Squeeze:
    """Weights that merge the captured teacher heads into `heads` student heads. No gradient flows through them.

    Args:
        capture: The teacher's layer; all methods but `constant` and `hard` need its `out` (W^O by head).
        heads: The number of heads of the student, g.
        plan: `contiguous`, or a list of groups of head numbers.
        method: `pairwise`: alpha in closed form, merged left to right inside each group (eq. 5-9); joint: least squares
            over each group at once, on the simplex; per_query: the same for every query row separately; constant: 1/k
            (the paper's table 8); hard: one head of each group, drawn from `seed` (table 7). With g = h every method
            is the identity.
        clamp: Whether to keep every pairwise alpha in [0, 1]; without, merged maps can be negative, and KL undefined.
        seed: The seed of the method hard.
        backend: `streamed` (tile by tile), fused (PyTorch's attention kernels, for GPUs) or triton (Triton kernels, for
            GPUs); the weights are the same up to rounding.
        chunk_mib: Memory budget for maps, in MiB; does not change the result beyond rounding.
        keep_maps: Whether to keep the maps for attention_kl, if all of them fit into half of that budget.
        projections: A cache of the factors of W^O, for a teacher whose weights do not change.
        row_weight: [b,n], 0 or more: a factor of every query row's squared error, 1 for None; rows of weight 0
            (padding, instructions) take no part.
        check: Whether to check for NaN and infinity, which synchronises with a GPU; without, NaN is propagated.
        buffers: Scratch memory to use again; it has the kept maps, too, until it is used for another layer.

    Raises:
        UserError: The number of groups g is not in 1..h, or the plan is not a partition.
        ValueError: No W^O, or the input is not finite.
    """
    _check(capture, plan, method, backend)
    b, h, _, _ = capture.shape
    groups = plan_of(plan, h, heads)
    group_of = {head: g for g, members in enumerate(groups) for head in members}
    group = index_tensor(tuple(group_of[head] for head in range(h)), capture.query.device)
    given, capture = capture, capture.detach()
    if check:
        _check_finite(capture)
    row_weight = check_row_weight(row_weight, capture, "squeeze", check)
    wide = wide_dtype(capture.query)
    if method in ("constant", "hard") or heads == h:
        fixed = tuple(_fixed(groups, method, seed).tolist())
        weight = index_tensor(fixed, capture.query.device, wide)[None, :, None].expand(b, h, 1)
        alpha = weight.new_zeros(b, 0) if method == "pairwise" else None
        clamped = None if alpha is None else alpha.bool()
        residual = weight.new_zeros(b, h) if heads == h else None
        return Squeeze(weight, group, groups, alpha=alpha, clamped=clamped, residual=residual)
    if capture.out is None:
        reason = f": {capture.why_no_out}" if capture.why_no_out else ""
        raise ValueError(f"squeeze: {method} weights need the output projection by head (Capture.out [h,d,e]){reason}")
    rest = (projections or Projections(), row_weight, check, Buffers.fitting(buffers, wide, group.device))
    merge = _Merge(capture, groups, method, clamp, backend, chunk_mib, keep_maps, *rest)
    with torch.no_grad(), torch.autocast(group.device.type, enabled=False):
        return merge.run(group, given)


def _check(capture: Capture, plan: PlanLike, method: str, backend: str) -> None:
    one_layer(capture, "squeeze")
    if method not in get_args(Method):
        raise UserError(f"squeeze: method: wanted one of {', '.join(get_args(Method))}, found '{method}'")
    if backend not in get_args(Backend):
        raise UserError(f"squeeze: backend: wanted {', '.join(get_args(Backend))}, found '{backend}'")
    if isinstance(plan, str) and plan != "contiguous":
        raise UserError(f"squeeze: plan: wanted contiguous or a list of groups, found '{plan}'")
    if backend == "fused" and capture.causal and capture.positions is not None:
        raise ValueError("squeeze: backend fused cannot serve some query rows of causal attention; use streamed")
    reason = unfit(capture) if backend == "triton" else None
    if reason:
        raise ValueError(f"squeeze: backend triton cannot serve here: {reason}; use streamed or fused")


def plan_of(plan: PlanLike, heads: int, groups: int) -> Plan:
    """The Plan for squeeze's argument `plan`."""
    return contiguous(heads, groups) if isinstance(plan, str) else check_plan(plan, heads, groups)


def check_row_weight(weight: Tensor | None, capture: Capture, where: str, values: bool = False) -> Tensor | None:
    """Weights of query rows [b,n], detached, in float32 (float64 if the query is).

    `values` has the numbers looked at on a GPU, too, which synchronises with it.

    Raises:
        ValueError: No tensor, another shape, or a number below 0 or that is none.
    """
    if weight is None:
        return None
    b, _, n, _ = capture.shape
    if not isinstance(weight, Tensor) or weight.shape != (b, n):
        given = list(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
        raise ValueError(f"{where}: row_weight: wanted a tensor [b,n] = [{b},{n}], found {given}")
    if (values or weight.device.type == "cpu") and not bool(((weight >= 0) & weight.isfinite()).all()):
        raise ValueError(f"{where}: row_weight: wanted finite numbers of 0 or more, found others")
    return weight.detach().to(capture.query.device, wide_dtype(capture.query))


def can_keep(shape: tuple[int, int, int, int], chunk_mib: float) -> bool:
    """Whether float32 maps of shape (b, h, n, m) fit into half of the budget."""
    return 4 * math.prod(shape) <= chunk_mib * 2**19


def _check_finite(capture: Capture) -> None:
    total = sum(x.sum(dtype=torch.float64) for x in (capture.query, capture.key, capture.value))
    if not bool(torch.isfinite(total)):  # type: ignore[arg-type]
        raise ValueError("squeeze: wanted finite q, k and v of the teacher, found NaN or infinity")


def _fixed(plan: Plan, method: Method, seed: int) -> Tensor:
    """Weights [h] that do not depend on the maps."""
    weight = torch.zeros(sum(map(len, plan)), dtype=torch.float64, device="cpu")
    generator = torch.Generator().manual_seed(seed)
    for members in plan:
        if method == "hard":
            drawn = torch.randint(len(members), (1,), generator=generator, device="cpu")
            weight[members[int(drawn)]] = 1.0
        else:
            weight[list(members)] = 1.0 / len(members)
    return weight


class _Part(NamedTuple):
    """The weights of all groups of one size."""

    heads: tuple[int, ...]
    """H = G k heads, group by group."""
    weight: Tensor
    """[b,H,n or 1]"""
    residual: Tensor
    """[b,G]"""
    top: Tensor | None = None
    """[b,H,n], with 1/total."""
    inverse: Tensor | None = None
    alpha: Tensor | None = None
    """[b,G (k-1)]"""
    clamped: Tensor | None = None
    maps: Tensor | None = None
    """[b,H,n,m]"""


@dataclass(frozen=True, eq=False)
class _Merge:
    """Weights that depend on the maps."""

    capture: Capture
    plan: Plan
    method: Method
    clamp: bool
    backend: Backend
    chunk_mib: float
    keep_maps: bool
    projections: Projections
    row_weight: Tensor | None
    check: bool
    buffers: Buffers

    def run(self, group: Tensor, given: Capture) -> Squeeze:
        """The squeeze of all groups; `given` is the capture before it was detached."""
        wide = wide_dtype(self.capture.query)
        sizes = by_size(self.plan)
        parts = [self._equal() if k == 1 else self._part([self.plan[g] for g in students]) for k, students in sizes]
        heads = [head for part in parts for head in part.heads]
        students = [g for _, of_size in sizes for g in of_size]
        merges = [g for k, of_size in sizes for g in of_size for _ in range(k - 1)]

        def joined(name: str, numbers: list[int]) -> Tensor:
            return _in_order([x for x in (getattr(part, name) for part in parts) if x is not None], numbers)

        pairwise, has_sums = self.method == "pairwise", self.backend == "triton"
        maps = {k: part.maps for (k, _), part in zip(sizes, parts) if part.maps is not None}
        return Squeeze(
            joined("weight", heads).to(wide),
            group,
            self.plan,
            alpha=joined("alpha", merges).to(wide) if pairwise else None,
            clamped=joined("clamped", merges) if pairwise else None,
            residual=joined("residual", students).to(wide),
            row_sums=(joined("top", heads), joined("inverse", heads)) if has_sums else None,
            maps=maps,
            of=given if has_sums or maps else None,
        )

    def _equal(self) -> _Part:
        """The heads that stand for themselves."""
        b, _, n, _ = self.capture.shape
        heads = tuple(group[0] for group in self.plan if len(group) == 1)
        rows = n if self.method == "per_query" else 1
        ones = torch.ones(b, len(heads), rows, device=self.capture.query.device, dtype=torch.float64)
        sums = row_sums(self.capture, 1.0, heads) if self.backend == "triton" else (None, None)
        return _Part(heads, ones, torch.zeros_like(ones[:, :, 0]), *sums)

    def _part(self, members: list[tuple[int, ...]]) -> _Part:
        """Groups of k >= 2 heads."""
        (b, h, n, m), k = self.capture.shape, len(members[0])
        wide = wide_dtype(self.capture.query)
        fits = self.keep_maps and self.backend == "streamed" and can_keep((b, h, n, m), self.chunk_mib)
        kept = self.buffers.take(f"kept {k}", b, k * len(members), n, m) if fits else None
        inner, sums = self._products([list(group) for group in members], kept)
        if self.check and not bool(torch.isfinite(inner.norm).all()):
            raise ValueError("squeeze: wanted finite W^O and outputs of the teacher's heads, found NaN or infinity")
        alpha, clamped, eps = None, None, torch.finfo(wide).eps
        if self.method == "pairwise":
            assert inner.table is not None
            w, alpha, clamped = weights.progressive(inner.table, inner.norm, self.clamp, eps)
            alpha, clamped = alpha.flatten(1), clamped.flatten(1)
        else:
            w = weights.joint(inner, eps)  # [b,G,k] or [b,G,n,k]
        by_head = w.movedim(-1, 2).flatten(1, 2) if w.ndim == 4 else w.flatten(1)[..., None]
        heads, residual = tuple(itertools.chain(*members)), weights.relative_residual(inner, w)
        return _Part(heads, by_head, residual, *sums, alpha, clamped, kept)

    def _products(
        self, members: products.Groups, keep: Tensor | None
    ) -> tuple[products.Products, tuple[Tensor | None, Tensor | None]]:
        """The products, and the row sums if the backend computes them."""
        assert self.capture.out is not None
        per_row = self.method == "per_query"
        if self.backend == "triton":
            return by_kernels(self.capture, members, self.projections, per_row, self.row_weight)
        layer = (self.capture, members, self.projections.of(self.capture.out, members), per_row)
        if self.backend == "fused":
            return products.fused(*layer, self.chunk_mib, row_weight=self.row_weight), (None, None)
        return products.streamed(*layer, self.chunk_mib, keep, self.row_weight, self.buffers), (None, None)


def _in_order(parts: list[Tensor], numbers: list[int]) -> Tensor:
    """Parts [b,x,...] side by side, in the order of their numbers."""
    joined = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
    order = [i for _, i in sorted((number, i) for i, number in enumerate(numbers))]
    if order == list(range(len(order))):
        return joined
    return joined.index_select(1, index_tensor(tuple(order), joined.device))
