"""What losses on features [b,n,e] have in common: features that can be compared, and means over tokens."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dit_shd.core.errors import UserError
from dit_shd.core.precision import wide_dtype
from dit_shd.distillation.records import Layer
from dit_shd.tasks import Batch


def features(name: str, student: Layer, teacher: Layer) -> tuple[Tensor, Tensor]:
    """Both layers' tokens, [b,n,e] of one b and n, in the student's precision or float32.

    Args:
        name: The name of the loss, for the error.
        student: One layer.
        teacher: The layer that it learns from.

    Raises:
        UserError: They are no tokens, or of other samples or tokens.
    """
    s, t = student.hidden, teacher.hidden
    assert s is not None and t is not None, "a loss on features reads hidden or attention output"
    if s.ndim != 3 or t.ndim != 3 or s.shape[:2] != t.shape[:2]:
        raise UserError(
            f"losses.{name}: wanted features [b,n,e] of the same samples and tokens, found {list(s.shape)} in "
            f"{student.name} and {list(t.shape)} in {teacher.name} of the teacher (other layers=?)"
        )
    return s, t


def wide(x: Tensor) -> Tensor:
    """A tensor in float32 or wider."""
    return x.to(wide_dtype(x))


def normalised(x: Tensor) -> Tensor:
    """Layer norm without scale and shift over the last axis."""
    return F.layer_norm(x, x.shape[-1:])


def token_mean(values: Tensor, batch: Batch | None) -> Tensor:
    """The mean [b] of values [b,n] over tokens, with the batch's weights of tokens.

    Args:
        values: The values of every token.
        batch: None for equal weights.
    """
    return weighted_mean(values, None if batch is None else batch.row_weight(values.shape[1]))


def weighted_mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """The mean [b] of values [b,n] times their weights [b,n], None for 1; weight 0 makes 0, also of an infinite one."""
    return (values if weight is None else torch.where(weight > 0, values * weight, 0.0)).mean(1)


def mean_token(x: Tensor, batch: Batch | None) -> Tensor:
    """The mean token [b,e] of features [b,n,e]: over the tokens of each sample that take part, 0 where none does.

    Args:
        x: Features.
        batch: None where all of them take part.
    """
    weight = None if batch is None else batch.row_weight(x.shape[1])
    if weight is None:
        return x.mean(1)
    counts = (weight > 0)[..., None]
    return torch.where(counts, x, 0.0).sum(1) / counts.sum(1).clamp(min=1)
