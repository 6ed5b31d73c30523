"""Exponential moving averages of the student's weights: what is sampled from, exported and compared.

One line of arithmetic, so that training need not import diffusers.training_utils, which takes 3 seconds.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dit_shd.core.dtensor import slice_like


class Averages:
    """One average for each rate, begun as a copy of the weights: a <- rate a + (1 - rate) w after every step.

    Args:
        rates: decay of each average, of which the first is the one that is sampled from.
    """

    def __init__(self, student: nn.Module, rates: Sequence[float]):
        self.names = [name for name, _ in student.named_parameters()]
        self._averages = {rate: [p.detach().clone() for p in student.parameters()] for rate in rates}

    @property
    def rates(self) -> tuple[float, ...]:
        return tuple(self._averages)

    @torch.no_grad()
    def step(self, student: nn.Module) -> None:
        weights: list[Tensor] = list(student.parameters())
        for rate, average in self._averages.items():
            torch._foreach_lerp_(average, weights, 1 - rate)  # weights that stay as they are are averaged exactly

    def tensors(self, rate: float | None = None) -> dict[str, Tensor]:
        """The averaged parameters by name; of the first rate unless another is named."""
        return dict(zip(self.names, self._averages[self.rates[0] if rate is None else rate]))

    @torch.no_grad()
    def load(self, rate: float, tensors: dict[str, Tensor]) -> None:
        """Put back what `tensors` gave, each process its own slices.

        Raises:
            KeyError, ValueError: a tensor is missing, or has another shape.
        """
        for name, average in self.tensors(rate).items():
            if tensors[name].shape != average.shape:
                raise ValueError(f"average of {name}: wanted {list(average.shape)}, found {list(tensors[name].shape)}")
            average.copy_(slice_like(tensors[name], average))
