"""Exponential moving averages of the student's weights: what is sampled from, exported and compared."""

from collections.abc import Sequence

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from dit_shd.sharding import slice_like


class Averages:
    """One average for each rate, begun as a copy of the weights: a <- rate a + (1 - rate) w after every step.

    Args:
        rates: decay of each average, of which the first is the one that is sampled from.
    """

    def __init__(self, student: nn.Module, rates: Sequence[float]):
        self.names = [name for name, _ in student.named_parameters()]
        self._models = {
            rate: EMAModel(student.parameters(), rate, min_decay=rate, update_after_step=-1, foreach=True)
            for rate in rates
        }

    @property
    def rates(self) -> tuple[float, ...]:
        return tuple(self._models)

    def to(self, device: torch.device) -> "Averages":
        for model in self._models.values():
            model.to(device)
        return self

    def step(self, student: nn.Module) -> None:
        for model in self._models.values():
            model.step(student.parameters())

    def tensors(self, rate: float | None = None) -> dict[str, Tensor]:
        """The averaged parameters by name; of the first rate unless another is named."""
        model = self._models[self.rates[0] if rate is None else rate]
        return dict(zip(self.names, model.shadow_params))

    def load(self, rate: float, tensors: dict[str, Tensor], device: torch.device) -> None:
        """Put back what `tensors` gave."""
        model = self._models[rate]
        own = [slice_like(tensors[name], old) for name, old in zip(self.names, model.shadow_params)]
        model.load_state_dict({"shadow_params": own})
        model.to(device)
