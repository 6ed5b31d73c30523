"""Weights of losses by training step."""

import re

import numpy as np

from dit_shd.core.config import plain_number
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
    given = weight if isinstance(weight, dict) else {0: weight}
    points = {plain_number(step): plain_number(factor) for step, factor in given.items()}
    for step, factor in points.items():
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            share = "; shares of a run are for its YAML" if isinstance(step, str) else ""
            raise UserError(
                f"{name}: weight: wanted whole steps from 0 as in {{0: 0.0, 1000: 2.0}}, found {step!r}{share}"
            )
        if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 <= factor < float("inf"):
            raise UserError(f"{name}: weight: wanted 0 or more, found {factor!r}")
    if not points:
        raise UserError(f"{name}: weight: wanted a number or {{step: number}}, found nothing")
    return dict(sorted(points.items()))


SHARE = re.compile(r"(\d+(?:\.\d+)?)\s*%")
"""Of a run's steps, as a key."""


def shares_as_steps(weight: object, steps: int, name: str) -> object:
    """A weight as YAML has it, with steps in place of shares of the run: {0: 1, 20%: 1, 30%: 0}.

    Args:
        weight: Of any type; what has no shares is returned as it is.
        steps: Of the run.
        name: The name of the key, for errors.

    Raises:
        UserError: A share above 100%, or two keys of one step.
    """
    if not isinstance(weight, dict) or not any(isinstance(key, str) and SHARE.fullmatch(key) for key in weight):
        return weight
    points: dict[object, object] = {}
    shares: dict[object, float] = {}
    for key, factor in weight.items():
        share = SHARE.fullmatch(key) if isinstance(key, str) else None
        if share is not None and float(share[1]) > 100:
            raise UserError(f"{name}: wanted shares of the run up to 100%, found {key}")
        step = key if share is None else round(float(share[1]) / 100 * steps)
        later = share is not None and float(share[1]) > shares.get(step, 100.0)  # in a run of a few steps it counts
        if step in points and not later:
            raise UserError(f"{name}: step {step} of {steps} stands there twice ({key}); name each step once")
        points[step] = factor
        if share is not None:
            shares[step] = float(share[1])
    return points


def at_step(points: dict[int, float], step: int) -> float:
    """The factor of a schedule at a step, counted from 0."""
    return float(np.interp(step, list(points), list(points.values())))


def ended(points: dict[int, float], step: int) -> bool:
    """Whether a schedule that was above 0 is 0 from a step on, for good."""
    return any(points.values()) and not any(at_step(points, later) for later in (step, *points) if later >= step)


def end_of(points: dict[int, float]) -> int | None:
    """The step from which a schedule has ended, if there is one."""
    return next((step for step in points if ended(points, step)), None)
