"""Align to distill: every map of the teacher from all maps of the student, by a learned mixture."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dit_shd.attention.capture import Capture
from dit_shd.attention.softmax import softmax
from dit_shd.attention.tiles import CHUNK_MIB
from dit_shd.core.errors import UserError
from dit_shd.core.first_order import first_order
from dit_shd.distillation.losses import Forward, Loss, Needs, Reads, Term, Weight
from dit_shd.distillation.relations import checked_chunk, over_rows, row_sample, row_weight
from dit_shd.tasks import Batch


class AlignToDistill(Loss):
    """KL(A_t || softmax(W A_s)), W [H_t,H_s] learned: a 1x1 convolution over all maps of all layers and heads.

    Mean over the H_t maps of the teacher and, with `over: keys`, query rows (arXiv 2403.01479). What W makes is no
    distribution; the softmax makes it one: over keys for every query row, or over all n m entries of a map, where the
    teacher's map goes through that softmax, too, as in the public code. A bias, which that code has, would add the same
    to all of a map and have no effect. Entries that the teacher masks, and rows without weight, take no part. No map of
    layers: W learns it. All layers of both models need as many tokens. The teacher's layers are held until it has run.

    The mixtures of one sample take 2 n m H_t H_s operations in the forward and three times as many in the backward, so
    they grow with the product of both models' layers times heads. `rows` below 1 (ours) takes that share of the work:
    the mean over the drawn query rows, the same for all layers, is an unbiased estimate of the mean over all.

    Args:
        weight: Factor of the loss; {step: factor} for a schedule, in YAML also {20%: factor}.
        passes: Of the task, in which it applies.
        over: `keys` or `all`.
        rows: Share of the query rows, drawn anew in every step, that the divergence over keys is estimated from.
        seed: Of the drawn rows; in a config the run's.
        chunk_mib: Memory budget for maps, in MiB.
    """

    reads = frozenset({Reads.ATTENTION})
    learns = True
    needs = frozenset({Needs.EQUAL_TOKENS})
    paper = "arXiv 2403.01479"

    def __init__(
        self,
        weight: Weight = 1.0,
        passes: Sequence[str] | None = ("plain",),
        over: str = "keys",
        rows: float = 1.0,
        seed: int = 0,
        chunk_mib: float = CHUNK_MIB,
    ) -> None:
        super().__init__(weight, passes)
        if over not in ("keys", "all"):
            raise UserError(f"losses.align_to_distill.over: wanted keys or all, found '{over}'")
        if not 0 < rows <= 1:
            raise UserError(f"losses.align_to_distill.rows: wanted a share above 0 and at most 1, found {rows}")
        if over == "all" and rows < 1:
            raise UserError(
                f"losses.align_to_distill.rows: over: all is one distribution over all rows, found {rows}; "
                "a share of the rows: over: keys"
            )
        self.over, self.rows, self.seed = over, rows, seed
        self.chunk_mib = checked_chunk("align_to_distill", chunk_mib)
        self.align: nn.Linear | None = None
        """W, once the numbers of maps are known."""

    def build(self, student: Forward, teacher: Forward, batch: Batch) -> None:
        """Make W, of the number of maps of both models."""
        if self.align is None:
            s, t = _captures(student, "the student"), _captures(teacher, "the teacher")
            heads = sum(one.heads for one in s), sum(one.heads for one in t)
            self.align = nn.Linear(*heads, bias=False, device=s[0].query.device)

    def term(self, student: Forward, teacher: Forward, batch: Batch) -> Term:
        """The divergence of all maps [b]."""
        s, t = _captures(student, "the student"), _captures(teacher, "the teacher")
        if s[0].shape[0] != t[0].shape[0] or s[0].shape[2:] != t[0].shape[2:]:
            raise UserError(
                f"losses.align_to_distill: wanted the same samples and tokens, found (b, h, n, m) = {s[0].shape} in "
                f"the student and {t[0].shape} in the teacher"
            )
        heads = sum(one.heads for one in s), sum(one.heads for one in t)
        if self.align is None or (self.align.in_features, self.align.out_features) != heads:
            raise UserError(
                f"losses.align_to_distill: has no mixture of {heads[0]} maps for {heads[1]}; before the optimizer is "
                "made, call distiller.build([batch], teacher)"
            )
        n, weight = t[0].shape[2], row_weight(batch, t[0].shape[2])
        if self.rows < 1:
            drawn = row_sample(self.rows, n, self.seed, "align_to_distill", batch).to(t[0].query.device)
            s, t = [one.select(drawn) for one in s], [one.select(drawn) for one in t]
            n, weight = len(drawn), None if weight is None else weight[:, drawn]
        learned = (self.align.weight,)
        if self.over == "keys":
            planes = 4 * heads[0] + 6 * max(one.heads for one in t)
            parts = over_rows(partial(_by_keys, t, weight), s, planes, learned, self.chunk_mib)
            return Term(parts.sum(0) / n)
        parts = over_rows(partial(_by_map, t, weight), s, sum(heads) + 4 * heads[1], learned, self.chunk_mib)
        mass = parts[:, 0].sum(0)
        some = mass > 0  # else no row takes part
        safe = mass.where(some, 1.0)
        divergence = parts[:, 1].sum(0) / safe - safe.log() + parts[:, 2].logsumexp(0)
        return Term(divergence.where(some, 0.0).mean(1))


def _captures(forward: Forward, who: str) -> list[Capture]:
    """The captures of all layers, of one number of tokens."""
    layers = {name: layer.attention for name, layer in forward.attention.items()}
    shapes = {name: one.shape[2:] for name, one in layers.items() if one is not None}
    first = next(iter(shapes))
    other = next((name for name, shape in shapes.items() if shape != shapes[first]), first)
    if other != first:
        raise UserError(
            f"losses.align_to_distill: wanted as many tokens in all layers of {who}, found {shapes[first]} in {first} "
            f"and {shapes[other]} in {other}; other tokens in other layers: shd, head_mean"
        )
    return [one for one in layers.values() if one is not None]


def _by_keys(
    teacher: list[Capture],
    row_weights: Tensor | None,
    student: Sequence[Capture],
    learned: Sequence[Tensor],
    rows: slice,
) -> Tensor:
    """The sum over query rows of the divergence, mean over the teacher's maps [b]."""
    maps = torch.cat([one.map(rows) for one in student], 1)
    share = maps.new_full((maps.shape[0], maps.shape[2]), 1 / len(learned[0]))
    if row_weights is not None:
        share = share * row_weights[:, rows].to(maps)
    return _KeyDivergence.apply(maps, *learned, teacher, rows, share, torch.is_grad_enabled())  # type: ignore[return-value]


class _KeyDivergence(torch.autograd.Function):
    """sum_i,r share_r KL(A_i,r || softmax(X_i,r)), X = W A_s, of one layer of the teacher after the other [b].

    With X's gradient, share (softmax(X) - A), at hand where X is, the forward computes those of A_s and, for each
    sample, of W, so that no map of the teacher outlives its layer.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        maps: Tensor,
        weight: Tensor,
        teacher: list[Capture],
        rows: slice,
        share: Tensor,
        gradients: bool,
    ) -> Tensor:
        flat, mixture = maps.flatten(2), weight.to(maps)
        value = maps.new_zeros(len(maps))
        d_flat, d_mixture = torch.zeros_like(flat) if gradients else None, []
        for one, part in zip(teacher, mixture.split([one.heads for one in teacher])):
            target, hidden = _target(one, rows)
            mixed = (part @ flat).unflatten(2, maps.shape[2:])
            if hidden is not None:
                mixed.masked_fill_(hidden, torch.finfo(mixed.dtype).min)
            total, mass = mixed.logsumexp(-1, keepdim=True), target.sum(-1, keepdim=True)
            cross = mass[..., 0] * total[..., 0] - (target * mixed).sum(-1)
            value += ((cross - torch.special.entr(target).sum(-1)).sum(1) * share).sum(1)
            if d_flat is not None:
                error = mixed.sub_(total).exp_().mul_(mass).sub_(target).mul_(share[:, None, :, None]).flatten(2)
                d_flat.baddbmm_(part.T.expand(len(maps), -1, -1), error)
                d_mixture.append(error @ flat.transpose(1, 2))
        if d_flat is not None:
            ctx.save_for_backward(d_flat.view_as(maps), torch.cat(d_mixture, 1), weight)
        return value

    @staticmethod
    @first_order
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]  # noqa: ANN401
        d_maps, d_mixture, weight = ctx.saved_tensors
        d_weight = torch.einsum("b,bts->ts", upstream, d_mixture).to(weight.dtype)
        return d_maps * upstream[:, None, None, None], d_weight, None, None, None, None


def _target(capture: Capture, rows: slice) -> tuple[Tensor, Tensor | None]:
    """A map [b,h,r,m] of the teacher and, if there are any, which of its entries are masked."""
    scores = capture.scores(rows)
    hidden, bias = scores == float("-inf") if capture.causal else None, capture.hidden(rows)
    if bias is not None:
        hidden = (bias if hidden is None else hidden | bias).expand(scores.shape)
    return softmax(scores, capture.masks), hidden


def _by_map(
    teacher: list[Capture],
    row_weights: Tensor | None,
    student: Sequence[Capture],
    learned: Sequence[Tensor],
    rows: slice,
) -> Tensor:
    """For each of the teacher's maps [3,b,H_t] over some rows: sum of e^A, of e^A (A - X), log sum exp X."""
    maps = torch.cat([one.map(rows) for one in student], 1)
    mixed = torch.einsum("th,bhrm->btrm", learned[0].to(maps), maps)
    layers = [_target(one, rows) for one in teacher]
    target = torch.cat([target for target, _ in layers], 1)
    if any(hidden is not None for _, hidden in layers):
        hidden = [torch.zeros_like(a, dtype=torch.bool) if hidden is None else hidden for a, hidden in layers]
        mixed = mixed.masked_fill(torch.cat(hidden, 1), torch.finfo(maps.dtype).min)
    seen = mixed > torch.finfo(mixed.dtype).min / 2
    likely, exponent = target.exp(), mixed
    if row_weights is not None:
        weight = row_weights[:, None, rows, None].to(target)
        seen = seen & (weight > 0)
        likely, exponent = likely * weight, mixed + weight.clamp(min=torch.finfo(weight.dtype).tiny).log()
    likely = likely.masked_fill(~seen, 0.0)
    gap = (target - mixed).masked_fill(~seen, 0.0)
    exponent = exponent.masked_fill(~seen, torch.finfo(mixed.dtype).min)
    return torch.stack([likely.sum((2, 3)), (likely * gap).sum((2, 3)), exponent.flatten(2).logsumexp(2)])
