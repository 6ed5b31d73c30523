"""MiniLMv2: relations of queries, of keys and of values of one layer, in heads of their own."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dit_shd.attention.tiles import CHUNK_MIB
from dit_shd.core.errors import UserError
from dit_shd.distillation.losses import Layer, LayerLoss, Term, Weight
from dit_shd.distillation.relations import by_query_head, captures, checked_chunk, relation_kl, row_weight
from dit_shd.tasks import Batch


class MiniLMv2(LayerLoss):
    """Sum over x in q, k, v of KL(R_t || R_s), R = softmax(x x^T / sqrt d_r) in r relation heads (arXiv 2012.15828).

    The heads of x are put side by side and split into r heads anew, so that head counts and widths may differ. Mean
    over relation heads and query rows.

    Args:
        weight: Factor of the loss; {step: factor} for a schedule, in YAML also {20%: factor}.
        passes: Of the task, in which it applies.
        layers: `last`, `sections`, `proportional`, or a map {student layer: teacher layer}; the paper takes the
            student's last layer and an upper middle layer of a large teacher.
        relation_heads: r; none for the student's number of heads. It has to divide all widths.
        chunk_mib: Memory budget for relations, in MiB.
    """

    paper = "arXiv 2012.15828"

    def __init__(
        self,
        weight: Weight = 1.0,
        passes: Sequence[str] | None = ("plain",),
        layers: str | dict[str, str] = "last",
        relation_heads: int | None = None,
        chunk_mib: float = CHUNK_MIB,
    ) -> None:
        super().__init__(weight, passes, layers)
        if relation_heads is not None and relation_heads < 1:
            raise UserError(f"losses.minilmv2.relation_heads: wanted 1 or more, found {relation_heads}")
        self.relation_heads, self.chunk_mib = relation_heads, checked_chunk("minilmv2", chunk_mib)

    def pair(self, student: Layer, teacher: Layer, batch: Batch | None) -> Term:
        """The three divergences of one pair of layers [b]."""
        s, t = captures("minilmv2", student, teacher)
        heads = self.relation_heads or s.heads
        terms: dict[str, Tensor] = {}
        for name in ("query", "key", "value"):
            both = tuple(by_query_head(getattr(x, name), x.heads) for x in (s, t))
            widths = [x.shape[1] * x.shape[3] for x in both]
            if any(width % heads for width in widths):
                raise UserError(
                    f"losses.minilmv2.relation_heads: wanted a divisor of both widths, found {heads} for {widths[0]} "
                    f"({name} of {student.name}) and {widths[1]} ({teacher.name} of the teacher)"
                )
            weight = row_weight(batch, both[0].shape[2])
            terms[name] = relation_kl(_split(both[0], heads), _split(both[1], heads), weight, self.chunk_mib)
        value = torch.stack(list(terms.values())).sum(0)
        return Term(value, {name: term.detach().mean() for name, term in terms.items()})


def _split(x: Tensor, heads: int) -> Tensor:
    """[b,h,n,d] as [b,r,n,h d / r]."""
    return x.transpose(1, 2).flatten(2).unflatten(2, (heads, -1)).transpose(1, 2)
