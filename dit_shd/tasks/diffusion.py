"""What one pass of one training step works on, drawn once and shared by teacher and student."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from dit_shd.core import rng
from dit_shd.data.datasets import Dataset
from dit_shd.diffusion.denoiser import NO_LABEL, Denoiser
from dit_shd.diffusion.schedule import Schedule

PassName = Literal["plain", "masked"]


@dataclass(frozen=True, eq=False)
class Batch:
    """Everything both models see in one pass."""

    x_0: Tensor
    """Latents [b,c,y,x]."""
    noise: Tensor
    """The noise to predict, shaped like x_0."""
    x_t: Tensor
    """x_0 noised to timestep t."""
    t: Tensor
    """Timesteps [b]."""
    labels: Tensor
    """Class labels [b] after dropping; NO_LABEL where there is none (each model has its own number for that)."""
    keep: Tensor | None
    """Kept token indices [b,kept] of a masked pass."""
    indices: Tensor
    """Which samples of the dataset these are [b]."""
    step: int = 0
    """Of training, from 0: schedules of loss weights look at it."""

    def to(self, device: torch.device) -> "Batch":
        moved = {k: v.to(device, non_blocking=True) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **moved)


def predict(model: nn.Module, batch: Batch) -> Tensor:
    """A model's output for one batch."""
    return Denoiser(model)(batch.x_t, batch.t, batch.labels, batch.keep)


@dataclass(frozen=True)
class BatchSource:
    """Draws batches as pure functions of (seed, step, position in the global batch).

    Args:
        tokens: n of the student, for masked passes.
        batch_size: images of one optimizer step over all processes.
        label_dropout: share of labels replaced by "no label".
        mask_ratio: masked passes drop a share drawn once a step from [mask_ratio, mask_ratio + 0.2] (MDT).
    """

    dataset: Dataset
    schedule: Schedule
    seed: int
    batch_size: int
    label_dropout: float
    mask_ratio: float | None
    tokens: int | None

    @property
    def passes(self) -> tuple[PassName, ...]:
        return ("plain",) if self.mask_ratio is None else ("plain", "masked")

    def draw(self, step: int, positions: Sequence[int]) -> dict[PassName, Batch]:
        """The passes of some positions (0 .. batch_size-1) of one step.

        As in the public recipe the passes share x_0 and t, and have their own noise and label drops.
        """
        indices = self.indices(step, positions)
        x_0, labels = self.dataset.batch(indices, self.seed, step, positions)
        t = (rng.uniform(self.seed, "timestep", step, positions) * len(self.schedule)).long()
        batches: dict[PassName, Batch] = {}
        for name in self.passes:
            noise = rng.normal(self.seed, f"noise/{name}", step, positions, x_0.shape[1:])
            dropped = rng.uniform(self.seed, f"label/{name}", step, positions) < self.label_dropout
            batches[name] = Batch(
                x_0=x_0,
                noise=noise,
                x_t=self.schedule.add_noise(x_0, noise, t),
                t=t,
                labels=torch.where(dropped, NO_LABEL, labels),
                keep=self._keep(step, positions) if name == "masked" else None,
                indices=torch.from_numpy(indices),
                step=step,
            )
        return batches

    def indices(self, step: int, positions: Sequence[int]) -> np.ndarray:
        """Dataset indices: every epoch visits each sample once, in its own order, across step boundaries."""
        seen = step * self.batch_size + np.asarray(positions)
        count = len(self.dataset)
        return np.array([_order(self.seed, int(p) // count, count)[p % count] for p in seen])

    def _keep(self, step: int, positions: Sequence[int]) -> Tensor:
        assert self.mask_ratio is not None and self.tokens is not None
        ratio = self.mask_ratio + 0.2 * float(rng.stream(self.seed, "mask ratio", step).random())
        kept = max(1, int(self.tokens * (1 - ratio)))
        ranks = rng.uniform(self.seed, "mask", step, positions, (self.tokens,))
        return ranks.argsort(dim=1)[:, :kept].sort(dim=1).values


def kept_tokens(mask_ratio: float | None, tokens: int) -> dict[PassName, int | None]:
    """Pass -> the tokens its encoder sees, at the mean ratio; None for all."""
    passes: dict[PassName, int | None] = {"plain": None}
    if mask_ratio is not None:
        passes["masked"] = max(1, int(tokens * (1 - mask_ratio - 0.1)))
    return passes


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    return rng.permutation(seed, "order", epoch, count)
