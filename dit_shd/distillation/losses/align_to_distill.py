"""Align to distill: every map of the teacher from all maps of the student, by a learned mixture."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn

from dit_shd.attention.capture import Capture
from dit_shd.attention.tiles import CHUNK_MIB
from dit_shd.core.errors import UserError
from dit_shd.distillation.losses import Forward, Loss, Needs, Reads, Term, Weight
from dit_shd.distillation.relations import over_rows, row_weight
from dit_shd.tasks import Batch


class AlignToDistill(Loss):
    """KL(A_t || softmax(W A_s + c)), W [H_t,H_s] learned: a 1x1 convolution over all maps of all layers and heads.

    Mean over the H_t maps of the teacher and, with `over: keys`, query rows (arXiv 2403.01479). What W makes is no
    distribution; the softmax makes it one: over keys for every query row, or over all n m entries of a map, where the
    teacher's map goes through that softmax, too, as in the public code. Entries that the teacher masks, and rows
    without weight, take no part. No map of layers: W learns it. All layers of both models need as many tokens. The
    teacher's layers are held until it has run.

    Args:
        weight: Factor of the loss; {step: factor} for a schedule.
        passes: Of the task, in which it applies.
        over: `keys` or `all`.
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
        chunk_mib: float = CHUNK_MIB,
    ) -> None:
        super().__init__(weight, passes)
        if over not in ("keys", "all"):
            raise UserError(f"losses.align_to_distill.over: wanted keys or all, found '{over}'")
        self.over, self.chunk_mib = over, chunk_mib
        self.align: nn.Linear | None = None
        """W and c."""

    def build(self, student: Forward, teacher: Forward, batch: Batch) -> None:
        """Make W, of the number of maps of both models."""
        if self.align is None:
            s, t = _captures(student, "the student"), _captures(teacher, "the teacher")
            heads = sum(one.heads for one in s), sum(one.heads for one in t)
            self.align = nn.Linear(*heads, device=s[0].query.device)

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
        learned = (self.align.weight, self.align.bias)
        if self.over == "keys":
            parts = over_rows(partial(_by_keys, t, weight), s, sum(heads) + 3 * heads[1], learned, self.chunk_mib)
            return Term(parts.sum(0) / n)
        parts = over_rows(partial(_by_map, t, weight), s, sum(heads) + 4 * heads[1], learned, self.chunk_mib)
        mass = parts[:, 0].sum(0)
        return Term((parts[:, 1].sum(0) / mass - mass.log() + parts[:, 2].logsumexp(0)).mean(1))


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


def _tile(
    teacher: list[Capture], student: Sequence[Capture], learned: Sequence[Tensor], rows: slice
) -> tuple[Tensor, Tensor]:
    """The teacher's maps and the mixtures before the softmax of some query rows, [b,H_t,r,m] each.

    Keys that the teacher masks are masked in the mixtures.
    """
    weight, bias = learned
    target = torch.cat([one.map(rows) for one in teacher], 1)
    maps = torch.cat([one.map(rows) for one in student], 1)
    mixed = torch.einsum("th,bhrm->btrm", weight.to(maps), maps) + bias.to(maps)[:, None, None]
    if any(one.masks or one.causal for one in teacher):
        hidden = torch.cat([one.scores(rows) < torch.finfo(maps.dtype).min / 2 for one in teacher], 1)
        mixed = mixed.masked_fill(hidden, torch.finfo(maps.dtype).min)
    return target, mixed


def _cross(target: Tensor, log_map: Tensor) -> Tensor:
    """The sum of target (log target - log map) over keys [b,H,r]."""
    terms = target * (target.clamp(min=torch.finfo(target.dtype).tiny).log() - log_map)
    return torch.where(target > 0, terms, 0.0).sum(-1)


def _by_keys(
    teacher: list[Capture],
    row_weights: Tensor | None,
    student: Sequence[Capture],
    learned: Sequence[Tensor],
    rows: slice,
) -> Tensor:
    """The sum over query rows of the divergence, mean over the teacher's maps [b]."""
    target, mixed = _tile(teacher, student, learned, rows)
    terms = _cross(target, mixed.log_softmax(-1)).mean(1)
    return (terms if row_weights is None else terms * row_weights[:, rows].to(terms)).sum(1)


def _by_map(
    teacher: list[Capture],
    row_weights: Tensor | None,
    student: Sequence[Capture],
    learned: Sequence[Tensor],
    rows: slice,
) -> Tensor:
    """For each of the teacher's maps [3,b,H_t] over some rows: sum of e^A, of e^A (A - X), log sum exp X."""
    target, mixed = _tile(teacher, student, learned, rows)
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
