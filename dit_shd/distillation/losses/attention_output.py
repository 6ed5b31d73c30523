"""Attention output distillation: what the student's attention layers put out is what the teacher's do."""

from dit_shd.distillation.features import token_mean
from dit_shd.distillation.losses import Layer, Reads, Term
from dit_shd.distillation.projected_loss import ProjectedLoss
from dit_shd.tasks import Batch


class AttentionOutput(ProjectedLoss):
    """Sum over layers of the mean of (P(O_s) - O_t)^2, O [b,n,e] what a self-attention module gives (arXiv 2312.04005).

    O is after W^O and its bias where the module holds them, before where another module does (transformers' ViT).

    Args:
        weight: Factor of the loss; {step: factor} for a schedule, in YAML also {20%: factor}.
        passes: Of the task, in which it applies.
        layers: `sections`, `proportional`, `last`, or a map {student layer: teacher layer}.
        projector: P: linear, mlp, or none for layers of equal width.
    """

    reads = frozenset({Reads.ATTENTION_OUTPUT})
    paper = "arXiv 2312.04005"

    def pair(self, student: Layer, teacher: Layer, batch: Batch | None) -> Term:
        """The squared error of one pair of layers [b]."""
        s, t = self.projected(student, teacher)
        return Term(token_mean((s - t).square().mean(2), batch))
