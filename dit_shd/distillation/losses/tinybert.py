"""TinyBERT: scores before the softmax."""

from collections.abc import Sequence
from functools import partial

from torch import Tensor

from dit_shd.attention.capture import Capture
from dit_shd.attention.tiles import CHUNK_MIB
from dit_shd.core.errors import UserError
from dit_shd.distillation.losses import Layer, LayerLoss, Needs, Term, Weight, alternatives
from dit_shd.distillation.relations import captures, checked_chunk, over_rows, row_mean, row_weight
from dit_shd.tasks import Batch


class TinyBERT(LayerLoss):
    """Sum over layers of the mean of (S_s - S_t)^2 over heads, query rows and keys, S the scores before the softmax.

    arXiv 1909.10351, eq. 7. S is scale q k^T + bias. Head i learns from head i, or the mean of all heads from the mean
    of all heads (TextBrewer, arXiv 2002.12620). Keys that are masked in either model (a bias of -5,000 or less) count
    as 0. The paper's term of hidden states is the loss `feature`.

    Args:
        weight: Factor of the loss; {step: factor} for a schedule, in YAML also {20%: factor}.
        passes: Of the task, in which it applies.
        layers: `sections`, `proportional`, `last`, or a map {student layer: teacher layer}.
        heads: `each`, which wants as many in both models, or `mean`.
        chunk_mib: Memory budget for scores, in MiB.
    """

    needs = frozenset({Needs.EQUAL_HEADS})
    paper = "arXiv 1909.10351"

    def __init__(
        self,
        weight: Weight = 1.0,
        passes: Sequence[str] | None = ("plain",),
        layers: str | dict[str, str] = "sections",
        heads: str = "each",
        chunk_mib: float = CHUNK_MIB,
    ) -> None:
        super().__init__(weight, passes, layers)
        if heads not in ("each", "mean"):
            raise UserError(f"losses.tinybert.heads: wanted each or mean, found '{heads}'")
        self.heads, self.chunk_mib = heads, checked_chunk("tinybert", chunk_mib)

    def pair(self, student: Layer, teacher: Layer, batch: Batch | None) -> Term:
        """The squared error of one pair of layers [b]."""
        s, t = captures("tinybert", student, teacher)
        if self.heads == "each" and s.heads != t.heads:
            raise UserError(
                f"losses.tinybert: wanted as many heads, found {s.heads} in {student.name} and {t.heads} in "
                f"{teacher.name} of the teacher; any number: heads: mean, or "
                f"{alternatives(TinyBERT, Needs.EQUAL_HEADS)}"
            )
        tile = partial(_error, t, self.heads == "mean", row_weight(batch, s.shape[2]))
        planes = 4 * s.heads + 2 * t.heads
        return Term(over_rows(tile, [s], planes, chunk_mib=self.chunk_mib).sum(0))


def _error(
    teacher: Capture, mean: bool, weight: Tensor | None, student: Sequence[Capture], _: object, rows: slice
) -> Tensor:
    """The share [b] of some query rows."""
    s, t = _scores(student[0], mean, rows), _scores(teacher, mean, rows)
    hidden = _hidden(student[0], s, mean, rows) | _hidden(teacher, t, mean, rows)
    error = (s.masked_fill(hidden, 0.0) - t.masked_fill(hidden, 0.0)).square()
    return row_mean(error.mean((1, 3)), rows, teacher.shape[2], weight)


def _scores(capture: Capture, mean: bool, rows: slice) -> Tensor:
    scores = capture.scores(rows)
    return scores.mean(1, keepdim=True) if mean else scores


def _hidden(capture: Capture, scores: Tensor, mean: bool, rows: slice) -> Tensor:
    """Which keys are masked, broadcastable to the scores."""
    hidden, bias = scores == float("-inf"), capture.hidden(rows)  # the first are causal
    if bias is None:
        return hidden
    return hidden | (bias.any(1, keepdim=True) if mean else bias)
