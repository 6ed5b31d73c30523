"""From h teacher heads to g student heads: merge plans and the closed-form weights of Squeezing-Heads Distillation.

Paper: arXiv 2502.07436, eq. 5-9. Every way of squeezing is a matrix w[b,g,h] with A~_g = sum_h w[b,g,h] A_h. Each
teacher head belongs to exactly one student head, so one weight per teacher head and its group are all of w.

Notation inside a group of k heads: X_a = V_a W_a^O, D_i = A_i - A_k the maps' differences to the group's last one.
Everything a squeeze needs of the teacher is the table <D_i X_a, D_j X_b>, and that is d x d algebra:
<D_i X_a, D_j X_b> = <(D_i V_a)^T (D_j V_b), W_a W_b^T>, so no n x e tensor and no whole map is ever formed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dit_shd.attention import Capture
from dit_shd.attention.streamed import CHUNK_MIB, row_chunks
from dit_shd.errors import UserError

Plan = tuple[tuple[int, ...], ...]
"""The groups of teacher heads, one for each student head."""
Method = Literal["pairwise", "constant", "hard"]


@dataclass(frozen=True, eq=False)
class Squeeze:
    """Weights that merge teacher heads into student heads, and what is known about them."""

    weight: Tensor
    """[b,h,n or 1]: the weight of every teacher head in its student head; they sum to 1 in each group."""
    group: Tensor
    """[h]: the student head that each teacher head belongs to."""
    plan: Plan
    alpha: Tensor | None = None
    """[b, merges]: the weight kept by the merged output so far at each pairwise merge, in the plan's order."""
    clamped: Tensor | None = None
    """[b, merges]: where alpha had left [0, 1]."""
    residual: Tensor | None = None
    """[b,g]: ||A~_g sum_i X_i - sum_i A_i X_i|| / ||sum_i A_i X_i||, over the heads i of each group."""

    @property
    def heads(self) -> int:
        """g"""
        return len(self.plan)

    @property
    def w(self) -> Tensor:
        """The dense w[b,g,h,n or 1], for reading and for oracles."""
        member = torch.nn.functional.one_hot(self.group, self.heads).t()  # [g,h]
        return self.weight[:, None] * member[None, :, :, None]

    def mix(self, maps: Tensor, rows: slice = slice(None)) -> Tensor:
        """A~[b,g,r,m] of the maps [b,h,r,m] of some query rows."""
        weight = self.weight if self.weight.shape[2] == 1 else self.weight[:, :, rows]
        weighted = maps * weight[..., None].to(maps.dtype)
        b, _, r, m = maps.shape
        return weighted.new_zeros(b, self.heads, r, m).index_add_(1, self.group, weighted)


def contiguous(heads: int, groups: int) -> Plan:
    """Neighbouring heads, groups as even as possible, larger ones first: 16 -> 6 is 3,3,3,3,2,2.

    Raises:
        UserError: groups is not in 1..heads.
    """
    if not 1 <= groups <= heads:
        raise UserError(f"squeeze: wanted 1 to {heads} student heads for a teacher of {heads}, found {groups}")
    small, larger = divmod(heads, groups)
    sizes = [small + (i < larger) for i in range(groups)]
    starts = [sum(sizes[:i]) for i in range(groups)]
    return tuple(tuple(range(start, start + size)) for start, size in zip(starts, sizes))


def check_plan(plan: Sequence[Sequence[int]], heads: int, groups: int) -> Plan:
    """An explicit plan as a Plan: every teacher head exactly once, one group for each student head."""
    found = tuple(tuple(int(i) for i in part) for part in plan)
    if len(found) != groups or any(not part for part in found) or sorted(sum(found, ())) != list(range(heads)):
        raise UserError(
            f"squeeze: wanted a plan of {groups} groups that holds each of the heads 0..{heads - 1} once, found {found}"
        )
    return found


def squeeze(
    capture: Capture,
    heads: int,
    plan: Literal["contiguous"] | Sequence[Sequence[int]] = "contiguous",
    method: Method = "pairwise",
    clamp: bool = True,
    seed: int = 0,
    chunk_mib: float = CHUNK_MIB,
) -> Squeeze:
    """Weights that merge the captured teacher heads into `heads` student heads. No gradient flows through them.

    Args:
        capture: the teacher's layer; `pairwise` needs its `out` (W^O by head).
        plan: contiguous groups, or an explicit list of groups of head numbers.
        method: pairwise: alpha in closed form, merged left to right inside each group (eq. 5-9); constant: 1/k
            (the paper's table 8); hard: one head of each group, drawn once from `seed` (table 7).
        clamp: keep every alpha in [0, 1]; without, merged maps can be negative and KL is then undefined.
        chunk_mib: memory budget for maps, in MiB; does not change the result beyond rounding.

    Raises:
        UserError: student heads outside 1..h, or a plan that is no partition. ValueError: no W^O, not finite input.
    """
    b, h, _, _ = capture.shape
    groups = contiguous(h, heads) if isinstance(plan, str) else check_plan(plan, h, heads)
    group = torch.empty(h, dtype=torch.long)
    for g, members in enumerate(groups):
        group[list(members)] = g
    device = capture.query.device
    group = group.to(device)
    if method == "pairwise":
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            return _pairwise(capture.detach(), groups, group, clamp, chunk_mib)
    if method == "constant":
        weight = 1.0 / torch.bincount(group)[group]
    elif method == "hard":
        weight = torch.zeros(h, device=device)
        generator = torch.Generator().manual_seed(seed)
        for members in groups:
            weight[members[int(torch.randint(len(members), (1,), generator=generator))]] = 1.0
    else:
        raise UserError(f"squeeze: method: wanted pairwise, constant or hard, found '{method}'")
    return Squeeze(weight.float()[None, :, None].expand(b, h, 1), group, groups)


def _pairwise(capture: Capture, plan: Plan, group: Tensor, clamp: bool, chunk_mib: float) -> Squeeze:
    if capture.out is None:
        raise ValueError("squeeze: pairwise weights need the output projection by head (Capture.out [h,d,e])")
    b, h, _, _ = capture.shape
    device = capture.query.device
    wide = torch.promote_types(capture.query.dtype, torch.float32)
    weight = torch.ones(b, h, device=device, dtype=torch.float64)
    residual = torch.zeros(b, len(plan), device=device, dtype=torch.float64)
    merges: dict[int, tuple[Tensor, Tensor]] = {}
    for k in sorted({len(members) for members in plan} - {1}):
        chosen = [g for g, members in enumerate(plan) if len(members) == k]
        heads = torch.tensor([plan[g] for g in chosen], device=device)  # [groups of this size, k]
        table, norm = inner_products(capture, heads, chunk_mib)
        if not bool(torch.isfinite(norm).all()):
            raise ValueError("squeeze: the teacher's attention is not finite (NaN or infinity in q, k, v or W^O)")
        w, alpha, clamped = progressive(table, norm, clamp, torch.finfo(wide).eps)
        weight[:, heads] = w
        residual[:, chosen] = relative_residual(table, norm, w)
        merges |= {g: (alpha[:, i], clamped[:, i]) for i, g in enumerate(chosen)}
    alphas = [merges[g] for g in sorted(merges)]
    empty = torch.zeros(b, 0, device=device, dtype=wide)
    return Squeeze(
        weight.to(wide)[..., None],
        group,
        plan,
        alpha=torch.cat([a for a, _ in alphas], dim=1).to(wide) if alphas else empty,
        clamped=torch.cat([c for _, c in alphas], dim=1) if alphas else empty.bool(),
        residual=residual.to(wide),
    )


def inner_products(capture: Capture, heads: Tensor, chunk_mib: float = CHUNK_MIB) -> tuple[Tensor, Tensor]:
    """All that a squeeze needs of some groups of k heads, streamed over query rows.

    Args:
        heads: head numbers [groups, k], k >= 2.

    Returns:
        table[b,groups,i,a,j,c] = <D_i X_a, D_j X_c> for i, j < k-1 and a, c < k, and norm[b,groups] =
        ||sum_a A_a X_a||^2, both in float64 (products of a chunk in the maps' precision, sums over chunks in float64).
    """
    assert capture.out is not None
    b, h, n, m = capture.shape
    groups, k = heads.shape
    d = capture.value.shape[3]
    wide = torch.promote_types(capture.query.dtype, torch.float32)
    value = capture.value.to(wide)[:, heads]  # [b,groups,k,m,d]
    side_by_side = value.transpose(2, 3).reshape(b, groups, 1, m, k * d)
    width = (k - 1) * k * d
    gram = torch.zeros(b, groups, width, width, dtype=torch.float64, device=value.device)
    own = torch.zeros(b, groups, k * d, k * d, dtype=torch.float64, device=value.device)
    for rows in row_chunks(b, 2 * h, n, m, chunk_mib):
        maps = capture.map(rows)[:, heads]  # [b,groups,k,r,m]
        mixed = (maps[:, :, :-1] - maps[:, :, -1:]) @ side_by_side  # D_i V_a: [b,groups,k-1,r,k*d]
        mixed = mixed.transpose(2, 3).flatten(3)  # [b,groups,r,(k-1)*k*d]
        gram += mixed.transpose(2, 3) @ mixed
        outputs = (maps @ value).transpose(2, 3).flatten(3)  # A_a V_a: [b,groups,r,k*d]
        own += outputs.transpose(2, 3) @ outputs
    out = capture.out.double()[heads]  # [groups,k,d,e]
    projections = torch.einsum("gape,gcqe->gapcq", out, out)  # W_a W_c^T
    gram = gram.view(b, groups, k - 1, k, d, k - 1, k, d)
    table = torch.einsum("bgiapjcq,gapcq->bgiajc", gram, projections)
    norm = torch.einsum("bgapcq,gapcq->bg", own.view(b, groups, k, d, k, d), projections)
    return table, norm.clamp(min=0)


def progressive(table: Tensor, norm: Tensor, clamp: bool, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Merge the heads of each group left to right, alpha in closed form at each merge (eq. 5-9).

    Merging the output so far, A~ X~ (X~ the sum of its heads' X), with the next head A X: with D = A~ - A,
    u = D X~ and v = D X, the alpha that minimises ||(alpha A~ + (1-alpha) A)(X~ + X) - (A~ X~ + A X)||^2 is
    <u+v, u> / ||u+v||^2 (the sign of eq. 7 as the expansion of the objective gives it). Where ||u+v||^2 is zero up to
    rounding (equal maps, or X = -X~) every alpha is as good, and it is 0.5.

    Args:
        table, norm: of inner_products. eps: rounding unit of the maps.

    Returns:
        w[b,groups,k], alpha[b,groups,k-1] and where it was clamped [b,groups,k-1].
    """
    b, groups, _, k, _, _ = table.shape
    weight = torch.zeros(b, groups, k, dtype=table.dtype, device=table.device)
    weight[:, :, 0] = 1.0
    alphas, clamps = [], []
    for new in range(1, k):
        difference = weight.clone()
        difference[:, :, new] = -1.0  # D = A~ - A_new in terms of the maps, so of D_i too (coefficients sum to 0)
        c = difference[:, :, : k - 1]
        ahead = torch.einsum("bgi,bgj,bgiajc->bgac", c, c, table)  # <D X_a, D X_c>
        uu = ahead[:, :, :new, :new].sum((2, 3))
        uv = ahead[:, :, :new, new].sum(2)
        vv = ahead[:, :, new, new]
        total = uu + 2 * uv + vv
        flat = (total <= 64 * eps * (uu + vv)) | (total <= (8 * eps) ** 2 * norm)
        alpha = torch.where(flat, 0.5, (uu + uv) / torch.where(flat, 1.0, total))
        outside = (alpha < 0) | (alpha > 1)
        if clamp:
            alpha = alpha.clamp(0, 1)
        weight = weight * alpha[..., None]
        weight[:, :, new] = 1 - alpha
        alphas.append(alpha)
        clamps.append(outside)
    return weight, torch.stack(alphas, dim=2), torch.stack(clamps, dim=2)


def relative_residual(table: Tensor, norm: Tensor, weight: Tensor) -> Tensor:
    """||A~ sum_a X_a - sum_a A_a X_a|| / ||sum_a A_a X_a|| [b,groups] of weights [b,groups,k] (0 where both are 0)."""
    k = weight.shape[2]
    eye = torch.eye(k, dtype=table.dtype, device=table.device)
    coefficients = (weight[..., None] - eye)[:, :, : k - 1]  # sum_i (w_i - [i=a]) D_i X_a
    squared = torch.einsum("bgia,bgjc,bgiajc->bg", coefficients, coefficients, table).clamp(min=0)
    return torch.where(norm > 0, (squared / norm.clamp(min=torch.finfo(norm.dtype).tiny)).sqrt(), 0.0)
