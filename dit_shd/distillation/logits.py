"""What losses on logits have in common: whose logits can be compared."""

from math import inf

from torch import Tensor

from dit_shd.core.errors import UserError
from dit_shd.distillation.records import Forward


def shared_logits(name: str, student: Forward, teacher: Forward) -> tuple[Tensor, Tensor]:
    """What both models predict, if it is logits of the same classes.

    Of language models whose vocabularies are padded to unlike numbers of tokens (models of one family are), those that
    both have: more is never asked for, since both know the tokens of the data.

    Args:
        name: The name of the loss, for the error.
        student: The forward of the student.
        teacher: The forward of the teacher.

    Raises:
        UserError: It is none, or of other classes or tokens.
    """
    s, t = student.prediction, teacher.prediction
    if s.ndim == t.ndim == 3 and s.shape[:2] == t.shape[:2]:
        shared = min(s.shape[2], t.shape[2])
        return s[..., :shared], t[..., :shared]
    if s.shape != t.shape or s.ndim != 2:
        raise UserError(
            f"losses.{name}: wanted logits [b,k] or [b,n,k] of the same classes, found {list(s.shape)} of the student "
            f"and {list(t.shape)} of the teacher"
        )
    return s, t


def checked_temperature(name: str, temperature: float) -> float:
    """A temperature above 0.

    Args:
        name: The name of the loss, for the error.
        temperature: As a config says.

    Raises:
        UserError: It is not above 0, or infinite.
    """
    if not 0 < temperature < inf:
        raise UserError(f"losses.{name}.temperature: wanted a finite number above 0, found {temperature}")
    return temperature
