"""Weights of losses by training step."""

import numpy as np

from dit_shd.core.errors import UserError

Weight = float | dict[int, float]
"""A factor, or {step: factor}: linear between the named steps, constant before the first and after the last."""


def schedule(weight: Weight, name: str) -> dict[int, float]:
    """{step: factor}, steps in order.

    Args:
        weight: A factor, or factors by step.
        name: The name of the loss, for errors.

    Raises:
        UserError: A negative factor, or a key that is no step.
    """
    points = weight if isinstance(weight, dict) else {0: weight}
    for step, factor in points.items():
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            raise UserError(f"{name}: weight: wanted whole steps from 0 as in {{0: 0.0, 1000: 2.0}}, found {step!r}")
        if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 <= factor < float("inf"):
            raise UserError(f"{name}: weight: wanted 0 or more, found {factor}")
    if not points:
        raise UserError(f"{name}: weight: wanted a number or {{step: number}}, found nothing")
    return dict(sorted(points.items()))


def at_step(points: dict[int, float], step: int) -> float:
    """The factor of a schedule at a step, counted from 0."""
    return float(np.interp(step, list(points), list(points.values())))
