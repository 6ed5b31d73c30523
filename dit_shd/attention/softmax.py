"""Softmax in which rows with every key masked are zeros, as in SDPA, and not NaN."""

import torch
from torch import Tensor


def softmax(scores: Tensor, masks: bool = True) -> Tensor:
    """Softmax over the last axis; zeros where all of a row is -inf, if `masks` says that this is possible."""
    maps = scores.softmax(dim=-1)
    return maps.masked_fill(_all_masked(scores), 0.0) if masks else maps


def softmax_(scores: Tensor, masks: bool = True, out: Tensor | None = None) -> Tensor:
    """The same without a graph, in the memory of the scores or of `out`."""
    out = scores if out is None else out
    empty = _all_masked(scores) if masks else None
    torch.softmax(scores, dim=-1, out=out)
    return out if empty is None else out.masked_fill_(empty, 0.0)


def _all_masked(scores: Tensor) -> Tensor:
    return scores.amax(dim=-1, keepdim=True) == float("-inf")
