"""The batches that a process draws: a function of seed, step and position alone."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import torch

from dit_shd.core.errors import UserError
from dit_shd.core.rng import Draws
from dit_shd.tasks import Batch, Task

Passes = Sequence[Batch]
"""The passes of some positions of one step."""
Place = tuple[int, int]
"""A micro batch: its step (from 0) and its first position in the global batch."""
CALIBRATION_IMAGES = 32
"""Images of a step that losses are calibrated on."""


@dataclass(frozen=True)
class Batches:
    """The batches of a run as its processes divide them: process p of P draws micro batches p, p + P, ... of a step."""

    task: Task[Any]
    seed: int
    size: int
    """Images of one optimizer step, over all processes."""
    micro_size: int
    """Images of one forward in one process."""
    processes: int = 1
    process: int = 0
    fields: frozenset[str] = frozenset()
    """Fields of the dataset that losses read beside what the task draws."""
    at_once: int = CALIBRATION_IMAGES
    """Images of one forward, at most, in calibration and initialisation: the same for any number of processes."""

    @property
    def rounds(self) -> int:
        """Micro batches of a step in one process."""
        return self.size // (self.micro_size * self.processes)

    def draw(self, number: int, positions: Sequence[int]) -> Passes:
        """Draw some positions of a step's global batch.

        Args:
            number: Of the step, from 0.
            positions: In the batch.

        Raises:
            UserError: The dataset does not give a field that a loss reads.
        """
        draws = Draws(self.seed, number, positions, self.size)
        passes = self.task.draw(draws)
        if not self.fields:
            return passes
        sample = self.task.dataset.batch(passes[0].indices.numpy(), draws)  # the same draws: the same augmentation
        missing = sorted(self.fields - sample.keys())
        if missing:
            raise UserError(f"data: a loss reads {', '.join(missing)}, and batches have {', '.join(sorted(sample))}")
        return [replace(batch, data={name: sample[name] for name in sorted(self.fields)}) for batch in passes]

    def whole(self, number: int) -> Passes:
        """A step's global batch, of all processes."""
        return self.draw(number, range(self.size))

    def at(self, place: Place) -> Passes:
        """One micro batch."""
        number, first = place
        return self.draw(number, range(first, first + self.micro_size))

    def places(self, number: int) -> Iterator[Place]:
        """This process's micro batches of a step."""
        for i in range(self.rounds):
            yield number, (i * self.processes + self.process) * self.micro_size

    def places_of(self, steps: range) -> Iterator[Place]:
        """Those of several steps, one after the other."""
        for number in steps:
            yield from self.places(number)

    def first_steps(self, count: int, device: torch.device) -> Iterator[Passes]:
        """The first images of the first steps, for calibration: the same for any number of processes.

        They come in even pieces of no more than `at_once`, all pieces of a step together.

        Args:
            count: Of steps.
            device: Where the batches go.
        """
        images = min(CALIBRATION_IMAGES, self.size)
        parts = ceil(images / self.at_once)
        pieces = [range(images * i // parts, images * (i + 1) // parts) for i in range(parts)]
        for number in range(count):
            yield [batch.to(device) for piece in pieces for batch in self.draw(number, piece)]
