"""VkD: the teacher's normalised features from the student's, by a map that keeps lengths and angles."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import nn

from dit_shd.core.errors import UserError
from dit_shd.distillation.features import features, mean_token, normalised, token_mean, wide
from dit_shd.distillation.losses import Layer, LayerLoss, Needs, Reads, Term, Weight, alternatives
from dit_shd.distillation.projectors import Orthonormal
from dit_shd.tasks import Batch


class VkD(LayerLoss):
    """Sum over layers of smooth L1(F_s P^T, norm F_t), P [e_t,e_s] with orthonormal columns (arXiv 2403.06213).

    `norm` is the layer norm over channels without scale and shift. The mean is over channels and, if they are compared,
    tokens. P is learned.

    Args:
        weight: Factor of the loss; {step: factor} for a schedule, in YAML also {20%: factor}.
        passes: Of the task, in which it applies.
        layers: `last` (as published), `sections`, `proportional`, or a map {student block: teacher block}.
        tokens: `mean`, to compare the means of the tokens that take part; `all`, to compare every token.
    """

    reads = frozenset({Reads.HIDDEN})
    learns = True
    needs = frozenset({Needs.NARROWER})
    paper = "arXiv 2403.06213"

    def __init__(
        self,
        weight: Weight = 1.0,
        passes: Sequence[str] | None = ("plain",),
        layers: str | dict[str, str] = "last",
        tokens: str = "mean",
    ) -> None:
        super().__init__(weight, passes, layers)
        if tokens not in ("mean", "all"):
            raise UserError(f"losses.vkd.tokens: wanted mean or all, found '{tokens}'")
        self.tokens = tokens

    def make_projector(self, student: Layer, teacher: Layer) -> nn.Module:
        """P of one pair of blocks."""
        s, t = features("vkd", student, teacher)
        if s.shape[2] > t.shape[2]:
            raise UserError(
                f"losses.vkd: wanted a student no wider than its teacher, found {s.shape[2]} in {student.name} and "
                f"{t.shape[2]} in {teacher.name} of the teacher; any widths: {alternatives(VkD, Needs.NARROWER)}"
            )
        return Orthonormal(s.shape[2], t.shape[2], s)

    def pair(self, student: Layer, teacher: Layer, batch: Batch | None) -> Term:
        """The smooth L1 of one pair of blocks [b]."""
        s, t = features("vkd", student, teacher)
        s, t = wide(s), wide(t)
        if self.tokens == "mean":
            s, t = (mean_token(x, batch)[:, None] for x in (s, t))
            batch = None
        error = F.smooth_l1_loss(self.projector_of(student)(s), normalised(t), reduction="none")
        return Term(token_mean(error.mean(2), batch))
