"""The importance of channels: which ones a narrower student keeps."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dit_shd.distillation.initialisation.regression import RIDGE

ROUNDS = 64
"""Number of rounds in which channels are chosen; more channels than this are chosen several at a time."""


def most_important(count: int, readers: Sequence[tuple[Tensor, Tensor]]) -> tuple[int, ...]:
    """Forward selection of channels by their contribution to the outputs of all maps that read the space.

    The output of a map is W x. Regressed on the channels that are kept, x leaves a residual of covariance R; keeping
    channel i too reduces the missing energy of W x by (R W^T W R)_ii / R_ii (a pivoted Cholesky factorisation in the
    metric of W). Every map is normalised by the energy of its output. A channel is thus important if it is active, if
    its weights are large, and if the channels already kept do not predict it.

    Args:
        count: Number of channels to keep.
        readers: Cov[x] [a,a] and W [o,a] of every map that reads the space, with a channels in and o out.

    Returns:
        The numbers of the channels, ascending.
    """
    rest = torch.stack([covariance for covariance, _ in readers])
    metric = torch.stack([w.t() @ w / (w @ c * w).sum().clamp(min=torch.finfo(c.dtype).tiny) for c, w in readers])
    ridge = RIDGE * rest.diagonal(dim1=1, dim2=2).mean(1)[:, None] + torch.finfo(rest.dtype).tiny
    energy = (rest * (metric @ rest)).sum(1)  # diag(R G R) [maps,a]
    kept: list[int] = []
    while len(kept) < count:
        gain = (energy / (rest.diagonal(dim1=1, dim2=2) + ridge)).sum(0)
        gain[kept] = -torch.inf
        new = gain.topk(min(-(-count // ROUNDS), count - len(kept))).indices
        pivots = rest[:, new][:, :, new]
        pivots = pivots + torch.diag_embed(ridge.expand(-1, len(new)))
        factor = torch.linalg.solve_triangular(torch.linalg.cholesky(pivots), rest[:, new], upper=False).mT
        through = metric @ factor
        energy = energy - 2 * (factor * (rest @ through)).sum(2) + (factor * (factor @ (factor.mT @ through))).sum(2)
        rest = rest - factor @ factor.mT
        kept += new.tolist()
    return tuple(sorted(kept))
