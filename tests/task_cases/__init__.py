"""Tiny runs of every task, for laws that hold whatever is learned (tests/tasks/test_laws.py).

To add a task to all of them, add a file tests/task_cases/NAME.py that defines

    CASE = Case(
        values=values,  # a function: folder -> the values of a tiny TrainConfig without `run`
        terms={"plain/cross_entropy", "plain/shd"},  # some metrics that every step of it has
        broken="blocks.0.mlp",  # a submodule of the student; a test makes its output NaN
    )

`values(folder)` writes what the run needs (data, a random teacher) into the folder, and returns a config with `task`,
`data`, `student`, `teacher` (`check_teacher: no` if it is random) and `losses` (SHD among them) that trains a step in
some 50 ms. Its task evaluates with figures (a reference, a split, ...), quickly. COMMON has the other keys: batches of
8, an optimizer whose steps do not blow rounding up, averages, checkpoints. There is no list to edit.
"""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMMON = {
    "steps": 4,
    "batch_size": 8,
    "log_every": 1,
    "checkpoint_every": 2,
    "keep_checkpoints": 1,
    "ema": [0.9, 0.5],
    "optimizer": {"name": "adamw", "lr": 1e-3, "eps": 1e-3, "warmup_steps": 2},
    "validate_every": 2,
}
"""Keys that a case may leave out."""


@dataclass(frozen=True)
class Case:
    """A task, and a tiny run of it."""

    values: Callable[[Path], dict[str, Any]]
    """Makes data and teacher in a folder; the values of a config, over COMMON."""
    terms: set[str]
    """Some of the metrics of every step."""
    broken: str
    """A submodule of the student that every pass runs, for a test to break."""


CASES: dict[str, Case] = {
    module.name: importlib.import_module(f"{__name__}.{module.name}").CASE for module in pkgutil.iter_modules(__path__)
}
"""By the name of the task."""
