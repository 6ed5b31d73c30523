"""Losses that compare features of two layers after a learned map of the student's."""

from collections.abc import Sequence

from torch import Tensor, nn

from dit_shd.distillation.features import features, wide
from dit_shd.distillation.layer_loss import LayerLoss
from dit_shd.distillation.projectors import Kind, check_kind, projected, projector
from dit_shd.distillation.records import Layer
from dit_shd.distillation.schedule import Weight


class ProjectedLoss(LayerLoss):
    """A sum over pairs of layers of some distance of P(F_s) and F_t [b,n,e].

    Args:
        weight: The factor in the total, constant or by step.
        passes: Names of the task's passes that it is a term of; None for all of them.
        layers: `sections`, `proportional`, `last`, or a map {student layer: teacher layer}.
        projector: P: linear, mlp, or none for layers of equal width.

    Raises:
        UserError: Another projector.
    """

    learns = True

    def __init__(
        self,
        weight: Weight = 1.0,
        passes: Sequence[str] | None = ("plain",),
        layers: str | dict[str, str] = "sections",
        projector: Kind = "linear",
    ) -> None:
        super().__init__(weight, passes, layers)
        self.name = type(self).__module__.rpartition(".")[2]
        """In YAML, for errors."""
        self.projection: Kind = check_kind(self.name, projector)

    def make_projector(self, student: Layer, teacher: Layer) -> nn.Module:
        """P of one pair of layers."""
        s, t = features(self.name, student, teacher)
        return projector(self.name, self.projection, s, t)

    def projected(self, student: Layer, teacher: Layer) -> tuple[Tensor, Tensor]:
        """P(F_s) and F_t [b,n,e] of one pair of layers, in float32 or wider."""
        s, t = features(self.name, student, teacher)
        return wide(projected(self.projector_of(student), s)), wide(t)
