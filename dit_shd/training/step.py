"""One optimizer step that is done, and what follows on it."""

from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Step:
    """One finished optimizer step."""

    number: int
    """Counts from 1."""
    terms: dict[str, Tensor]
    """Loss terms, gradient norms: this process's means, not yet those of all. Empty if the step was left out."""
    stopping: bool = False
    """Whether the run ends after it, since all processes agreed on a request to stop."""
    metrics: dict[str, float] = field(default_factory=dict)
    """What the log has of it, the same in every process; empty on steps that are not logged."""


class Service(Protocol):
    """Something a run does beside its steps: it writes the log, saves, evaluates. It knows when it is due."""

    def after(self, step: Step) -> None:
        """Do what is due after a step; every process calls it."""
        ...
