"""What losses on logits have in common: whose logits can be compared, and their divergence."""

from collections.abc import Iterator
from math import inf
from typing import Any

import torch
from torch import Tensor

from dit_shd.core.errors import UserError
from dit_shd.distillation.records import Forward

NUMBERS = 2**22
"""Logits that are worked on at a time."""


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


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(softmax(t / T) || softmax(s / T)) in float32 or more [...], with a gradient to the student's logits alone.

    Of many tokens to know logits are most of a step's memory: some rows at a time are worked on, twice, so that no map
    of their size is kept beside them and the gradient.

    Args:
        student: Logits s [...,k].
        teacher: Logits t [...,k]; what is -inf, as classes left out, counts nothing.
        temperature: T.
    """
    divergence: Any = _Divergence.apply(student, teacher, temperature)
    return divergence


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(student, teacher)
        ctx.temperature = temperature
        values = student.new_empty(student.shape[:-1], dtype=torch.promote_types(student.dtype, torch.float32))
        for rows, s, t in _rows(student, teacher, temperature):
            log_s, log_t = s.log_softmax(1), t.log_softmax(1)
            terms = torch.where(log_t == -inf, 0.0, log_t.exp() * (log_t - log_s))
            torch.sum(terms, 1, out=values.view(-1)[rows])
        return values

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        student, teacher = ctx.saved_tensors
        gradient = torch.empty(student.shape, dtype=student.dtype, device=student.device)
        factor = upstream[0].reshape(-1, 1) / ctx.temperature
        for rows, s, t in _rows(student, teacher, ctx.temperature):
            part = (s.softmax(1) - t.softmax(1)) * factor[rows]
            gradient.view(-1, s.shape[1])[rows] = part.masked_fill_(factor[rows] == 0, 0.0)  # also of no numbers
        return gradient, None, None


def _rows(student: Tensor, teacher: Tensor, temperature: float) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Some rows at a time, of logits over T [r,k] in float32 or more."""
    s, t = (x.reshape(-1, x.shape[-1]) for x in (student, teacher))
    wide, size = torch.promote_types(s.dtype, torch.float32), max(1, NUMBERS // max(1, s.shape[1]))
    for start in range(0, len(s), size):
        rows = slice(start, start + size)
        yield rows, s[rows].to(wide) / temperature, t[rows].to(wide) / temperature
