"""Some numbers of a weight, by which it is noticed that it has changed between a forward and the loss."""

import torch
from torch import Tensor

from dit_shd.core.dtensor import local


def sample_of(weight: Tensor | None) -> Tensor | None:
    """Some numbers of a weight that nobody trains, by which a later change of it is noticed."""
    if weight is None or weight.is_meta or weight.ndim < 2 or (torch.is_grad_enabled() and weight.requires_grad):
        return None
    return diagonals(weight)


def unchanged(sample: Tensor, weight: Tensor | None, name: str) -> bool:
    """Whether a weight still has the numbers that it had; a GPU is not waited for, it stops at its next step if not."""
    if weight is None or weight.device != sample.device:
        return weight is not None and not weight.is_meta
    current = diagonals(weight)
    if sample.device.type != "cuda":
        return current.dtype == sample.dtype and torch.equal(current, sample)
    torch._assert_async((current == sample).all(), f"the weights of {name} have changed between forward and loss")
    return True


def diagonals(weight: Tensor) -> Tensor:
    """Numbers of a weight [o,i], of each row and each column."""
    matrix = local(weight.detach()).flatten(1)
    tall = matrix if len(matrix) >= matrix.shape[1] else matrix.T
    return torch.cat([tall[k : k + tall.shape[1]].diagonal() for k in range(0, len(tall), tall.shape[1])])
