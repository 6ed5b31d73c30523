"""MiniLM: maps and value relations of the last layer."""

from collections.abc import Sequence

from dit_shd.attention.tiles import CHUNK_MIB
from dit_shd.core.errors import UserError
from dit_shd.distillation.losses import Layer, LayerLoss, Needs, Term, Weight, alternatives
from dit_shd.distillation.relations import by_query_head, captures, checked_chunk, map_kl, relation_kl, row_weight
from dit_shd.tasks import Batch


class MiniLM(LayerLoss):
    """KL(A_t || A_s) + KL(R_t || R_s), R = softmax(V V^T / sqrt d), mean over heads and query rows (arXiv 2002.10957).

    Both models need as many heads; head i learns from head i. Any head widths. Values that several heads share
    count once for each of them.

    Args:
        weight: Factor of the loss; {step: factor} for a schedule, in YAML also {20%: factor}.
        passes: Of the task, in which it applies.
        layers: `last` (as published), `sections`, `proportional`, or a map {student layer: teacher layer}.
        chunk_mib: Memory budget for maps, in MiB.
    """

    needs = frozenset({Needs.EQUAL_HEADS})
    paper = "arXiv 2002.10957"

    def __init__(
        self,
        weight: Weight = 1.0,
        passes: Sequence[str] | None = ("plain",),
        layers: str | dict[str, str] = "last",
        chunk_mib: float = CHUNK_MIB,
    ) -> None:
        super().__init__(weight, passes, layers)
        self.chunk_mib = checked_chunk("minilm", chunk_mib)

    def pair(self, student: Layer, teacher: Layer, batch: Batch | None) -> Term:
        """Both divergences of one pair of layers [b]."""
        s, t = captures("minilm", student, teacher)
        if s.heads != t.heads:
            raise UserError(
                f"losses.minilm: wanted as many heads, found {s.heads} in {student.name} and {t.heads} in "
                f"{teacher.name} of the teacher; any number: {alternatives(MiniLM, Needs.EQUAL_HEADS)}"
            )
        maps = map_kl(s, t, row_weight(batch, s.shape[2]), self.chunk_mib)
        learned, taught = (by_query_head(x.value, x.heads) for x in (s, t))
        values = relation_kl(learned, taught, row_weight(batch, s.shape[3]), self.chunk_mib)
        return Term(maps + values, {"maps": maps.detach().mean(), "values": values.detach().mean()})
