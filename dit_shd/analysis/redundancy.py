"""Redundant intervals of a model's blocks, by linear probes from block to block (PPCL, arXiv 2511.16156).

A run of blocks is redundant where a linear map from the input of its first block predicts the output of its last one.
The map is fitted on every other sample, at all timesteps, and judged on the rest.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dit_shd.core.errors import UserError
from dit_shd.distillation.kept import KeptPlan

RIDGE = 1e-6
"""Of the fit, relative to the mean variance of a channel."""
Interval = tuple[int, int]
"""Blocks first .. last - 1."""


@dataclass
class LinearFits:
    """Second moments of tokens at the borders of blocks, at most `longest` blocks apart."""

    longest: int
    _sums: dict[tuple[int, int, int], Tensor] = field(default_factory=dict)
    """(half, i, j) -> X_i^T X_j, tokens with a 1 in front, in float64."""

    def add(self, borders: Sequence[Tensor], number: int) -> None:
        """Take in tokens [b,n,e] at all borders: what goes into the first block, and what each gives.

        Args:
            borders: The tokens.
            number: Of the first sample, which is the same at every timestep.
        """
        for half in range(2):
            taken = [border[(half + number) % 2 :: 2].flatten(0, 1) for border in borders]
            wide = [torch.cat([x.new_ones(len(x), 1), x], 1).double() for x in taken]
            for i, x in enumerate(wide):
                for j in range(i, min(i + self.longest, len(wide) - 1) + 1):
                    product = x.t() @ wide[j]
                    self._sums[half, i, j] = self._sums.get((half, i, j), 0) + product

    def error(self, first: int, last: int) -> float:
        """The share of the variance behind block last - 1 that no linear map from the input of block first predicts."""
        if last - first == 1:
            return 0.0
        inputs, both = self._sums[0, first, first], self._sums[0, first, last]
        ridge = RIDGE * inputs.diagonal()[1:].mean() * torch.eye(len(inputs), dtype=inputs.dtype, device=inputs.device)
        ridge[0, 0] = 0
        fit = torch.linalg.solve(inputs + ridge, both)
        inputs, cross, outputs = (self._sums[1, *key] for key in ((first, first), (first, last), (last, last)))
        left = outputs.trace() - 2 * (fit * cross).sum() + (fit * (inputs @ fit)).sum()
        variance = outputs.trace() - outputs[0].square().sum() / outputs[0, 0]
        return float(left / variance)


def best_intervals(error: Callable[[int, int], float], count: int, keep: int, longest: int) -> list[Interval]:
    """The division of `count` blocks into `keep` runs of at most `longest` whose errors have the smallest sum.

    Args:
        error: Of a run: (first block, last block + 1).
        count: The number of blocks.
        keep: Of runs.
        longest: Blocks of a run.

    Raises:
        UserError: There is no such division.
    """
    if not 0 < keep <= count or keep * longest < count:
        raise UserError(
            f"keep: wanted {-(-count // longest)} to {count} of {count} blocks (runs of at most {longest}, longest), "
            f"found {keep}"
        )
    best: dict[tuple[int, int], tuple[float, list[Interval]]] = {(0, 0): (0.0, [])}
    for runs in range(1, keep + 1):
        for end in range(runs, count + 1):
            ways = [
                (best[runs - 1, start][0] + error(start, end), [*best[runs - 1, start][1], (start, end)])
                for start in range(max(0, end - longest), end)
                if (runs - 1, start) in best
            ]
            if ways:
                best[runs, end] = min(ways, key=lambda way: way[0])
    return best[keep, count][1]


def plan_of(blocks: Sequence[str], intervals: Sequence[Interval], errors: Sequence[float]) -> KeptPlan:
    """The plan of a student with a block for each interval, named as the teacher's first blocks.

    Args:
        blocks: The blocks of the teacher, in order.
        intervals: All of them, in order.
        errors: Of each.
    """
    names = blocks[: len(intervals)]
    return KeptPlan(
        weights={name: blocks[first] for name, (first, _) in zip(names, intervals)},
        layers={name: blocks[last - 1] for name, (_, last) in zip(names, intervals)},
        errors=dict(zip(names, errors)),
    )
