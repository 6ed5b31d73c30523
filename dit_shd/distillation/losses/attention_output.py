"""Attention output distillation: what the student's attention layers put out is what the teacher's do."""

from collections.abc import Sequence

from torch import nn

from dit_shd.distillation.features import features, token_mean, wide
from dit_shd.distillation.losses import Layer, LayerLoss, Reads, Term, Weight
from dit_shd.distillation.projectors import Kind, check_kind, projector
from dit_shd.tasks import Batch


class AttentionOutput(LayerLoss):
    """Sum over layers of the mean of (P(O_s) - O_t)^2, O [b,n,e] what a self-attention module gives (arXiv 2312.04005).

    O is after W^O and its bias where the module holds them, before where another module does (transformers' ViT).

    Args:
        weight: Factor of the loss; {step: factor} for a schedule.
        passes: Of the task, in which it applies.
        layers: `sections`, `proportional`, `last`, or a map {student layer: teacher layer}.
        projector: P: linear, mlp, or none for layers of equal width.
    """

    reads = frozenset({Reads.ATTENTION_OUTPUT})
    learns = True
    paper = "arXiv 2312.04005"

    def __init__(
        self,
        weight: Weight = 1.0,
        passes: Sequence[str] | None = ("plain",),
        layers: str | dict[str, str] = "sections",
        projector: Kind = "linear",
    ) -> None:
        super().__init__(weight, passes, layers)
        self.project: Kind = check_kind("attention_output", projector)

    def make_projector(self, student: Layer, teacher: Layer) -> nn.Module:
        """P of one pair of layers."""
        s, t = features("attention_output", student, teacher)
        return projector("attention_output", self.project, s, t)

    def pair(self, student: Layer, teacher: Layer, batch: Batch | None) -> Term:
        """The squared error of one pair of layers [b]."""
        s, t = features("attention_output", student, teacher)
        error = (wide(self.projector_of(student)(s)) - wide(t)).square().mean(2)
        return Term(token_mean(error, batch))
