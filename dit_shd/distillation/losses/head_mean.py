"""Head mean: the mean of the student's maps over its heads is that of the teacher's."""

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from dit_shd.attention.capture import Capture
from dit_shd.attention.tiles import CHUNK_MIB
from dit_shd.core.errors import UserError
from dit_shd.distillation.losses import Layer, LayerLoss, Term, Weight
from dit_shd.distillation.relations import captures, kl, over_rows, row_mean, row_weight
from dit_shd.tasks import Batch


class HeadMean(LayerLoss):
    """Sum over layers of KL(mean_h A_t || mean_g A_s), mean over query rows (TextBrewer, arXiv 2002.12620).

    Sums over heads in place of means are this loss with another weight: h times as large for kl, h^2 times for mse.

    Args:
        weight: Factor of the loss; {step: factor} for a schedule.
        passes: Of the task, in which it applies.
        layers: sections, proportional, last, or a map {student layer: teacher layer}.
        measure: kl, or mse, the squared difference summed over keys.
        chunk_mib: Memory budget for maps, in MiB.
    """

    paper = "arXiv 2002.12620"

    def __init__(
        self,
        weight: Weight = 1.0,
        passes: Sequence[str] | None = ("plain",),
        layers: str | dict[str, str] = "sections",
        measure: str = "kl",
        chunk_mib: float = CHUNK_MIB,
    ) -> None:
        super().__init__(weight, passes, layers)
        if measure not in ("kl", "mse"):
            raise UserError(f"losses.head_mean.measure: wanted kl or mse, found '{measure}'")
        self.measure, self.chunk_mib = measure, chunk_mib

    def pair(self, student: Layer, teacher: Layer, batch: Batch | None) -> Term:
        """The divergence of one pair of layers [b]."""
        s, t = captures("head_mean", student, teacher)
        tile = partial(_divergence, t, self.measure, row_weight(batch, s.shape[2]))
        planes = 4 * s.heads + 2 * t.heads
        return Term(over_rows(tile, [s], planes, chunk_mib=self.chunk_mib).sum(0))


def _divergence(
    teacher: Capture, measure: str, weight: Tensor | None, student: Sequence[Capture], _: object, rows: slice
) -> Tensor:
    """The share [b] of some query rows."""
    t, s = teacher.map(rows).mean(1), student[0].map(rows).mean(1)
    terms = kl(t, s) if measure == "kl" else (t - s).square().sum(-1)
    return row_mean(terms, rows, teacher.shape[2], weight)
