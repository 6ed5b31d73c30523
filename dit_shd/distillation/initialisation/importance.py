"""Which channels of a space a narrower student keeps."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dit_shd.distillation.initialisation.regression import RIDGE

ROUNDS = 64
"""Up to this many channels are chosen one by one; of more, several in each of so many rounds."""


def most_important(count: int, seen: Sequence[tuple[Tensor, Tensor]]) -> tuple[int, ...]:
    """Forward selection of `count` channels: each adds most to what all maps that read the space would put out.

    A map puts out W x. Regressed on the channels that are kept, x leaves a residual of covariance R; keeping channel i
    too takes (R W^T W R)_ii / R_ii off the energy of W x that is missing (a pivoted Cholesky factorisation in the
    metric of W). Every map counts by the share of its own energy. So a channel is important where it is active, where
    the weights on it are large, and where the channels already kept do not tell it.

    Args:
        seen: Cov[x] [a,a] and W [out,a] of every map that reads the space.

    Returns:
        The numbers of the channels, ascending.
    """
    rest = torch.stack([covariance for covariance, _ in seen])
    metric = torch.stack([w.t() @ w / (w @ c * w).sum().clamp(min=torch.finfo(c.dtype).tiny) for c, w in seen])
    ridge = RIDGE * rest.diagonal(dim1=1, dim2=2).mean(1)[:, None] + torch.finfo(rest.dtype).tiny
    sent = (rest * (metric @ rest)).sum(1)  # diag(R G R) [maps,a]
    kept: list[int] = []
    while len(kept) < count:
        gain = (sent / (rest.diagonal(dim1=1, dim2=2) + ridge)).sum(0)
        gain[kept] = -torch.inf
        new = gain.topk(min(-(-count // ROUNDS), count - len(kept))).indices
        pivots = rest[:, new][:, :, new]
        pivots = pivots + torch.diag_embed(ridge.expand(-1, len(new)))
        factor = torch.linalg.solve_triangular(torch.linalg.cholesky(pivots), rest[:, new], upper=False).mT
        through = metric @ factor
        sent = sent - 2 * (factor * (rest @ through)).sum(2) + (factor * (factor @ (factor.mT @ through))).sum(2)
        rest = rest - factor @ factor.mT
        kept += new.tolist()
    return tuple(sorted(kept))
