"""Masked feature distillation: of both models' features only what lies near their means is compared."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dit_shd.core.errors import UserError
from dit_shd.distillation.losses import Layer, Reads, Term, Weight
from dit_shd.distillation.projected_loss import ProjectedLoss
from dit_shd.distillation.projectors import Kind
from dit_shd.tasks import Batch


class MaskedFeature(ProjectedLoss):
    """Sum over layers of the mean of (P(F_s) - F_t)^2 over the entries that neither model has as outliers.

    RepKD of TinyFusion (arXiv 2412.01199): an entry of F [n,e] of a sample is kept where |F - mean F| < k std F, for
    P(F_s) and for F_t, mean and std over all entries of the sample; what both keep is compared. Which entries are kept
    has no gradient. Tokens of weight 0 (padding) take no part. A sample of which nothing is kept counts as 0.

    Args:
        weight: Factor of the loss; {step: factor} for a schedule, in YAML also {20%: factor}.
        passes: Of the task, in which it applies.
        layers: `sections`, `proportional`, `last`, or a map {student block: teacher block}.
        projector: P: linear, mlp, or none for blocks of equal width (the paper's, whose widths are equal).
        deviations: k; 2 in the paper.
    """

    reads = frozenset({Reads.HIDDEN})
    paper = "arXiv 2412.01199"

    def __init__(
        self,
        weight: Weight = 1.0,
        passes: Sequence[str] | None = ("plain",),
        layers: str | dict[str, str] = "sections",
        projector: Kind = "linear",
        deviations: float = 2.0,
    ) -> None:
        super().__init__(weight, passes, layers, projector)
        if not deviations > 0:
            raise UserError(f"losses.masked_feature.deviations: wanted a number above 0, found {deviations}")
        self.deviations = deviations

    def pair(self, student: Layer, teacher: Layer, batch: Batch | None) -> Term:
        """The squared error of what is kept [b]."""
        s, t = self.projected(student, teacher)
        weight = None if batch is None else batch.row_weight(s.shape[1])
        counts = torch.ones_like(s, dtype=torch.bool) if weight is None else (weight > 0)[..., None].expand_as(s)
        kept = self._near(s.detach(), counts) & self._near(t, counts)
        error = torch.where(kept, (s - t).square(), 0.0)
        return Term(
            error.flatten(1).sum(1) / kept.flatten(1).sum(1).clamp(min=1),
            {"kept": kept.sum() / counts.sum().clamp(min=1)},
        )

    def _near(self, x: Tensor, counts: Tensor) -> Tensor:
        """Which of the entries [b,n,e] that count lie near their mean in the sample."""
        number = counts.sum((1, 2), keepdim=True)
        mean = torch.where(counts, x, 0.0).sum((1, 2), keepdim=True) / number.clamp(min=1)
        gap = torch.where(counts, x - mean, 0.0)
        std = (gap.square().sum((1, 2), keepdim=True) / (number - 1).clamp(min=1)).sqrt()
        return counts & (gap.abs() < self.deviations * std)
