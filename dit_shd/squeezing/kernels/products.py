"""The inner products of squeezing (products.py) by Triton kernels: few launches, for all groups of one size at once.

The kernels give A_i V_a of all query rows, so that the Gram matrices of D_i V_a are made first, and meet those of W^O.
"""

import torch
from torch import Tensor

from dit_shd.attention.capture import Capture
from dit_shd.attention.tiles import slices
from dit_shd.core.precision import true_float32
from dit_shd.squeezing.kernels.captures import MOST, values_met
from dit_shd.squeezing.products import Collector, Groups, Products, weighted
from dit_shd.squeezing.projections import Projections

GRAMS_MIB = 512
"""Memory budget for Gram matrices and the vectors they are of, on a GPU."""


SPLIT = 256
"""Query rows that one program of a GPU's matrix product adds up."""


def by_kernels(
    capture: Capture,
    groups: Groups,
    projections: Projections,
    per_row: bool = False,
    row_weight: Tensor | None = None,
) -> tuple[Products, tuple[Tensor, Tensor]]:
    """The same by Triton kernels, and the top and 1/total of the scores of the groups' rows [b,G k,n].

    Large groups go by vectors, since their Gram matrices have ((k-1) k d)^2 entries.
    """
    assert capture.out is not None
    (b, _, n, _), k = capture.shape, len(groups[0])
    values, *row_sums = values_met(capture, groups)
    values = values.unflatten(1, (-1, k))  # [b,G,i,a,n,d]
    with true_float32():
        if per_row or k > MOST:
            collector = Collector(b, len(groups), k, n, per_row, values.device, row_weight)
            collector.all_pairs(values, projections.of(capture.out, groups).float(), slice(0, len(groups)), n)
            return collector.products(), (row_sums[0], row_sums[1])
        if row_weight is not None:
            values = weighted(values, row_weight.sqrt()[:, None, None, None, :, None])
        return _by_grams(values, projections.grams(capture.out, groups)), (row_sums[0], row_sums[1])


def _by_grams(values: Tensor, grams: Tensor) -> Products:
    """Products of A_i V_a [b,G,i,a,n,d], for W_a W_c^T [G,k,d,k,d]; a few launches for all groups."""
    b, count, k, _, n, d = values.shape
    by_row = values.permute(0, 1, 4, 2, 3, 5)  # [b,G,n,i,a,d]
    wide = (k - 1) * k * d
    mib = 4 * count * wide * max(n, 3 * wide) / 2**20  # of a sample
    parts: list[tuple[Tensor, Tensor]] = []
    for samples in slices(b, max(1, int(GRAMS_MIB / mib))):
        one = by_row[samples]
        differences = one.new_empty(len(one), count, n, k - 1, k, d)
        torch.sub(one[:, :, :, :-1], one[:, :, :, -1:], out=differences)
        outputs = one.diagonal(dim1=3, dim2=4).transpose(3, 4).unsqueeze(3)  # A_a V_a [s,G,n,1,k,d]
        parts.append((_met(outputs, grams).sum((2, 3, 4, 5)), _met(differences, grams)))
    norm, table = parts[0] if len(parts) == 1 else map(torch.cat, zip(*parts))
    return Products(norm, table)


def _met(vectors: Tensor, grams: Tensor) -> Tensor:
    """<v_ia L_a, v_jc L_c> [b,G,i,a,j,c] in float64 of vectors v [b,G,n,i,a,d] of query rows."""
    b, count, n, _, _, _ = vectors.shape
    parts = n // SPLIT if n % SPLIT == 0 else 1  # long sums by several programs each
    flat = vectors.reshape(b * count * parts, n // parts, -1)
    products = torch.bmm(flat.mT, flat)
    if parts > 1:
        products = products.unflatten(0, (-1, parts)).sum(1)
    products = products.view(b, count, *vectors.shape[3:], *vectors.shape[3:])  # [b,G,i,a,d,j,c,e]
    return (products * grams[:, None, :, :, None]).sum((4, 7))
