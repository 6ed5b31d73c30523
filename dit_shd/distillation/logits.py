"""What losses on logits have in common: whose logits can be compared."""

from math import inf

from torch import Tensor

from dit_shd.core.errors import UserError
from dit_shd.distillation.records import Forward


def shared_logits(name: str, student: Forward, teacher: Forward) -> tuple[Tensor, Tensor]:
    """What both models predict, if it is logits of the same classes.

    Args:
        name: The name of the loss, for the error.
        student: The forward of the student.
        teacher: The forward of the teacher.

    Raises:
        UserError: It is none, or of other classes or tokens.
    """
    s, t = student.prediction, teacher.prediction
    if s.shape != t.shape or s.ndim not in (2, 3):
        raise UserError(
            f"losses.{name}: wanted logits [b,k] or [b,n,k] of the same classes, found {list(s.shape)} of the student "
            f"and {list(t.shape)} of the teacher{_remedy(s, t)}"
        )
    return s, t


def _remedy(student: Tensor, teacher: Tensor) -> str:
    """For language models whose embeddings are padded to unlike numbers of tokens."""
    more = student.ndim == 3 and student.shape[:2] == teacher.shape[:2] and student.shape[2] < teacher.shape[2]
    return f"; give the student as many tokens (student.config.vocab_size={teacher.shape[2]})" if more else ""


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
