"""Feature distillation: the student's blocks give what the teacher's give, up to a learned map."""

from collections.abc import Sequence

from dit_shd.distillation.features import normalised, token_mean
from dit_shd.distillation.losses import Layer, Reads, Term, Weight
from dit_shd.distillation.projected_loss import ProjectedLoss
from dit_shd.distillation.projectors import Kind
from dit_shd.tasks import Batch


class Feature(ProjectedLoss):
    """Sum over layers of the mean of (P(F_s) - F_t)^2 over tokens and channels, F [b,n,e] what blocks give.

    FitNets (arXiv 1412.6550), BK-SDM (arXiv 2305.15798) and FD of the SHD paper (arXiv 2502.07436).

    Args:
        weight: Factor of the loss; {step: factor} for a schedule, in YAML also {20%: factor}.
        passes: Of the task, in which it applies.
        layers: `sections`, `proportional`, `last`, or a map {student block: teacher block}.
        projector: P: linear; mlp, two linear maps with SiLU between; none, for blocks of equal width.
        normalise: Layer norm of P(F_s) and of F_t before the comparison, without scale and shift.
    """

    reads = frozenset({Reads.HIDDEN})
    paper = "arXiv 1412.6550, 2305.15798"

    def __init__(
        self,
        weight: Weight = 1.0,
        passes: Sequence[str] | None = ("plain",),
        layers: str | dict[str, str] = "sections",
        projector: Kind = "linear",
        normalise: bool = False,
    ) -> None:
        super().__init__(weight, passes, layers, projector)
        self.normalise = normalise

    def pair(self, student: Layer, teacher: Layer, batch: Batch | None) -> Term:
        """The squared error of one pair of blocks [b]."""
        s, t = self.projected(student, teacher)
        if self.normalise:
            s, t = normalised(s), normalised(t)
        return Term(token_mean((s - t).square().mean(2), batch))
