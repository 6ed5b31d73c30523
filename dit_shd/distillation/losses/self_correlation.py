"""Self correlation: tokens of the student resemble each other as tokens of the teacher do."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dit_shd.attention.tiles import full_precision
from dit_shd.distillation.features import features, wide
from dit_shd.distillation.losses import Layer, LayerLoss, Reads, Term
from dit_shd.tasks import Batch


class SelfCorrelation(LayerLoss):
    """Sum over layers of 1 - cos(C_s, C_t), C = F' F'^T [n,n] of tokens F' scaled to length 1.

    arXiv 2502.07436, eq. 12. No projector, any widths. C never exists where n is above the width:
    <F_s F_s^T, F_t F_t^T> = ||F_s^T F_t||^2, whose matrix is [e_s,e_t]; so memory is linear in the tokens.

    Args:
        weight: Factor of the loss; {step: factor} for a schedule, in YAML also {20%: factor}.
        passes: Of the task, in which it applies.
        layers: `sections`, `proportional`, `last`, or a map {student block: teacher block}.
    """

    reads = frozenset({Reads.HIDDEN})
    paper = "arXiv 2502.07436"

    def pair(self, student: Layer, teacher: Layer, batch: Batch | None) -> Term:
        """One minus the cosine of both matrices [b]; tokens of weight 0 take no part."""
        s, t = features("self_correlation", student, teacher)
        weight = None if batch is None else batch.row_weight(s.shape[1])
        with full_precision(s.device):
            s, t = (_directions(wide(x), weight) for x in (s, t))
            if s.shape[1] <= min(s.shape[2], t.shape[2]):
                s, t = (x @ x.transpose(1, 2) for x in (s, t))
                both, of_student, of_teacher = ((x * y).sum((1, 2)) for x, y in ((s, t), (s, s), (t, t)))
            else:
                both, of_student, of_teacher = (_overlap(x, y) for x, y in ((s, t), (s, s), (t, t)))
            squares = of_student * of_teacher
            some = squares > 0  # else no token takes part
            return Term(torch.where(some, 1 - both / squares.where(some, 1.0).sqrt(), 0.0))


def _directions(x: Tensor, weight: Tensor | None) -> Tensor:
    """Tokens [b,n,e] scaled to length 1; 0 where a weight [b,n] is 0."""
    x = F.normalize(x, dim=2)
    return x if weight is None else x * (weight > 0).to(x)[..., None]


def _overlap(x: Tensor, y: Tensor) -> Tensor:
    """<x x^T, y y^T> [b] of x [b,n,e] and y [b,n,f]."""
    return (x.transpose(1, 2) @ y).square().sum((1, 2))
