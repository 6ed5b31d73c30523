"""Exponential moving averages of the student's weights: what is sampled from, exported and compared.

One line of arithmetic, so that training need not import diffusers.training_utils, which takes 3 seconds.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dit_shd.core.dtensor import shard_like
from dit_shd.models.batch_norms import batch_norms

MUCH = 0.05
"""Share of the first weights above which an average is no good student."""


def rate_at(rate: float, step: int, warmup: bool) -> float:
    """The rate of a step, counted from 0.

    With a warm-up the average begins short and spans about a tenth of the steps until that is longer than the span of
    `rate` (as in TensorFlow and diffusers: (1 + n) / (10 + n)).
    """
    return min(rate, (1 + step) / (10 + step)) if warmup else rate


def share_of_first(rate: float, steps: int, warmup: bool) -> float:
    """The share of the first weights in an average after some steps: the product of all steps' rates."""
    short = 0  # steps whose rate is that of the warm-up
    if warmup:
        short = steps if rate >= 1 else min(steps, max(0, math.ceil((10 * rate - 1) / (1 - rate))))
    begun = math.lgamma(short + 1) + math.lgamma(10) - math.lgamma(short + 10)
    return math.exp(begun) * rate ** (steps - short)


def fitting_rate(steps: int) -> float:
    """The slowest rate, with one digit, of which at most 1 % of the first weights is left after so many steps."""
    gap = 1 - 0.01 ** (1 / steps)
    unit = 10.0 ** math.floor(math.log10(gap))
    return max(0.0, round(1 - math.ceil(gap / unit) * unit, 15))


def too_slow(rates: Sequence[float], steps: int, warmup: bool) -> str | None:
    """A warning of averages that will still be the first weights when a run ends; None where they will not."""
    shares = {rate: share_of_first(rate, steps, warmup) for rate in rates}
    slow = [f"{share:.0%} of the average {rate}" for rate, share in shares.items() if share > MUCH]
    if not slow:
        return None
    remedy = f"ema={fitting_rate(steps)} fits this length" + ("" if warmup else ", or ema_warmup=true")
    which = "the first of them is" if len(rates) > 1 else "it is"
    return (
        f"ema: after {steps} steps {', '.join(slow)} will still be the weights the run begins with, and {which} what "
        f"is exported as the student and sampled from; {remedy}"
    )


class EMA:
    """One average for each rate, begun as a copy of the weights: a <- rate a + (1 - rate) w after every step.

    Of weights that are frozen, as below low-rank adapters, it is the weights themselves. Means and variances of batch
    norms are averaged likewise (as by timm's ModelEma): those of the newest weights are not of averaged ones.

    Args:
        student: Whose parameters are averaged.
        rates: Decay of each average; the first is sampled from.
        warmup: Begin with smaller rates, see rate_at.
    """

    def __init__(self, student: nn.Module, rates: Sequence[float], warmup: bool = False):
        self.warmup = warmup
        named, measured = dict(student.named_parameters()), _statistics(student)
        self.names = [*named, *measured]
        self._trained = [i for i, p in enumerate(named.values()) if p.requires_grad]
        self._measured = range(len(named), len(self.names))
        self._averages = {
            rate: [
                *(p.detach().clone() if p.requires_grad else p.detach() for p in named.values()),
                *(tensor.clone() for tensor in measured.values()),
            ]
            for rate in rates
        }

    @property
    def measured(self) -> list[str]:
        """The names of the statistics of batch norms among the averages."""
        return [self.names[i] for i in self._measured]

    @property
    def rates(self) -> tuple[float, ...]:
        """The decay of each average."""
        return tuple(self._averages)

    @torch.no_grad()
    def step(self, student: nn.Module, number: int) -> None:
        """Update every average.

        Args:
            student: With its weights after a step.
            number: The number of the step, from 0.
        """
        tensors: list[Tensor] = [*student.parameters(), *_statistics(student).values()]
        for rate, averages in self._averages.items():
            share = 1 - rate_at(rate, number, self.warmup)
            for of in filter(None, (self._trained, self._measured)):  # apart: only parameters may be in slices
                torch._foreach_lerp_([averages[i] for i in of], [tensors[i] for i in of], share)

    def tensors(self, rate: float | None = None) -> dict[str, Tensor]:
        """The averaged parameters, and statistics of batch norms, by name.

        Args:
            rate: Of the average; None for the first.
        """
        return dict(zip(self.names, self._averages[self.rates[0] if rate is None else rate]))

    @torch.no_grad()
    def load(self, rate: float, tensors: dict[str, Tensor]) -> None:
        """Put back an average, in every process its slices.

        Args:
            rate: The rate of the average.
            tensors: The same by name, whole.

        Raises:
            KeyError, ValueError: A tensor is missing, or has another shape.
        """
        for name, average in self.tensors(rate).items():
            if tensors[name].shape != average.shape:
                raise ValueError(f"average of {name}: wanted {list(average.shape)}, found {list(tensors[name].shape)}")
            average.copy_(shard_like(tensors[name], average))


def _statistics(student: nn.Module) -> dict[str, Tensor]:
    """Means and variances of a student's batch norms, by name."""
    return {
        f"{name}.{key}": buffer
        for name, norm in batch_norms(student).items()
        for key, buffer in norm.named_buffers(recurse=False)
        if buffer.is_floating_point()
    }
