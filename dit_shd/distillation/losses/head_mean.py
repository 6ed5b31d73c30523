"""Head mean: the mean of the student's maps over its heads is that of the teacher's."""

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from dit_shd.attention.capture import Capture
from dit_shd.attention.softmax import softmax
from dit_shd.attention.tiles import CHUNK_MIB
from dit_shd.core.errors import UserError
from dit_shd.distillation.losses import Layer, LayerLoss, Term, Weight
from dit_shd.distillation.relations import captures, checked_chunk, kl, over_rows, row_mean, row_weight
from dit_shd.tasks import Batch

MASKED = -1e6
"""Below this logarithm a key is masked: by a number that stands for -inf, as finfo.min does."""


class HeadMean(LayerLoss):
    """Sum over layers of KL(mean_h A_t || mean_g A_s), mean over query rows (TextBrewer, arXiv 2002.12620).

    With `of: scores` the maps are softmax(mean_h S) of the scores before the softmax, as TextBrewer computes its
    att_ce_mean. With equal head counts, sums over heads in place of means are this loss with another weight: h times as
    large for kl, h^2 times for mse.

    Args:
        weight: Factor of the loss; {step: factor} for a schedule, in YAML also {20%: factor}.
        passes: Of the task, in which it applies.
        layers: `sections`, `proportional`, `last`, or a map {student layer: teacher layer}.
        measure: `kl`, or `mse`, the squared difference summed over keys.
        of: `maps`, or `scores`: what the mean is of.
        chunk_mib: Memory budget for maps, in MiB.
    """

    paper = "arXiv 2002.12620"

    def __init__(
        self,
        weight: Weight = 1.0,
        passes: Sequence[str] | None = ("plain",),
        layers: str | dict[str, str] = "sections",
        measure: str = "kl",
        of: str = "maps",
        chunk_mib: float = CHUNK_MIB,
    ) -> None:
        super().__init__(weight, passes, layers)
        if measure not in ("kl", "mse"):
            raise UserError(f"losses.head_mean.measure: wanted kl or mse, found '{measure}'")
        if of not in ("maps", "scores"):
            raise UserError(f"losses.head_mean.of: wanted maps or scores, found '{of}'")
        self.measure, self.of, self.chunk_mib = measure, of, checked_chunk("head_mean", chunk_mib)

    def pair(self, student: Layer, teacher: Layer, batch: Batch | None) -> Term:
        """The divergence of one pair of layers [b]."""
        s, t = captures("head_mean", student, teacher)
        tile = partial(_divergence, t, self.measure, self.of == "scores", row_weight(batch, s.shape[2]))
        planes = 4 * s.heads + 2 * t.heads
        return Term(over_rows(tile, [s], planes, chunk_mib=self.chunk_mib).sum(0))


def _divergence(
    teacher: Capture,
    measure: str,
    of_scores: bool,
    weight: Tensor | None,
    student: Sequence[Capture],
    _: object,
    rows: slice,
) -> Tensor:
    """The share [b] of some query rows."""
    mean = _mean_of_scores if of_scores else _mean_of_maps
    target = mean(teacher, rows)
    if measure == "kl":
        terms = kl(target, _log_mean(student[0], rows, of_scores))
    else:
        terms = (target - mean(student[0], rows)).square().sum(-1)
    return row_mean(terms, rows, teacher.shape[2], weight)


def _mean_of_maps(capture: Capture, rows: slice) -> Tensor:
    return capture.map(rows).mean(1)


def _mean_of_scores(capture: Capture, rows: slice) -> Tensor:
    return softmax(capture.scores(rows).mean(1), capture.masks)


def _log_mean(capture: Capture, rows: slice, of_scores: bool) -> Tensor:
    """The logarithm of a mean map [b,r,m], by logarithms: a map may be too small to have one, and then no gradient.

    Of keys that are masked in all heads it is that of the smallest number.
    """
    scores = capture.scores(rows)
    scores = scores.mean(1, keepdim=True) if of_scores else scores
    numbers, hidden = torch.finfo(scores.dtype), scores == float("-inf")
    logs = scores.masked_fill(hidden, numbers.min).log_softmax(-1)
    hidden = hidden | (logs < MASKED)
    mean = logs.masked_fill(hidden, numbers.min).logsumexp(1) - math.log(logs.shape[1])
    return mean.masked_fill(hidden.all(1), math.log(numbers.tiny))
