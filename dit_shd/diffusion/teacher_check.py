"""Whether a teacher does what we think: looked at on the run's first images, before anything is written.

A teacher of velocity taught as noise, of other latents, of another schedule or with its classes in another order loads
and runs like a good one. Three questions of its noise error (DDPM eq. 14) tell them apart:

- Is it below that of the best linear prediction from x_t, noise level by noise level?
- Is the noise as large as it predicts? E[noise | x_t] has E[noise p] = E[p p]; another schedule or scale breaks that.
- Is it lower under the true labels than under wrong ones, and not higher than under none? Image by image, on the same
  noise; images are added until that is clear.

All is drawn as a function of the seed for this purpose alone, by the main process: a run's own draws stay the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from dit_shd.core import rng
from dit_shd.data.datasets import Dataset
from dit_shd.diffusion.denoiser import NO_LABEL, Denoiser, known_classes
from dit_shd.diffusion.objectives import split
from dit_shd.diffusion.schedule import Schedule

SNRS = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03)
"""Noise levels that are looked at: at lower and higher ones a good teacher is not much better than the linear one."""
LABEL_SNR = 1.0
"""Labels are looked at where there is as much noise as this or more: there they decide what is predicted."""
AT_ONCE = 8
"""Images of each level in a round: one forward of 48 images, and two of 32 for the labels."""
ROUNDS = (2, 16)
"""At least, and at most, where labels are not clear before."""
SCALE = 1.3
"""How many times too small or too large a prediction may be."""
CLEAR, WORSE, ENOUGH = 4.0, -3.0, 2.0
"""Standard errors: of a gain that ends the look, of a loss against no label, of a gain that is one after all rounds."""


@dataclass
class Figures:
    """What was found, by noise level [l] and, of labels, by image."""

    error: Tensor
    """The teacher's noise error as a share of the best linear prediction's [l]."""
    scale: Tensor
    """What the prediction would have to be multiplied by [l]; 1 is right."""
    images: int
    wrong: float | None = None
    """Gain of the true labels over wrong ones, in standard errors; None: not looked at."""
    none: float | None = None
    """The same over no labels."""

    def line(self) -> str:
        """In words."""
        error, scale = (f"{x.min():.2f} to {x.max():.2f}" for x in (self.error, self.scale))
        told = f"noise error {error} of the best linear prediction's, scale {scale}"
        if self.wrong is not None:
            told += (
                f"; true labels {self.wrong:+.1f} standard errors better than wrong ones, {self.none:+.1f} than none"
            )
        return f"{told} ({self.images} images)"

    def fault(self) -> str | None:
        """What a good teacher does not do, with the likely reasons; labels are judged where the noise is right."""
        if not bool((self.error < 1).all()):
            return (
                "its noise error is no better than a linear prediction's: does it predict velocity or x_0, come from "
                "other latents (scale, autoencoder, channels, pixel range), have another schedule, or is it untrained?"
            )
        if not bool(((self.scale < SCALE) & (self.scale > 1 / SCALE)).all()):
            return (
                "its prediction is of another size than the noise: was it trained with another schedule "
                "(task.timesteps) or on latents of another scale?"
            )
        if self.none is not None and self.none <= WORSE:
            return (
                "the labels make it worse than none: are its classes in another order than the data's, or have the "
                "data no labels? (label_dropout=1 teaches without)"
            )
        if self.wrong is not None and self.wrong < ENOUGH:
            return (
                "it is no better under the true labels than under wrong ones: are its classes others than the data's, "
                "or has it none? (label_dropout=1 teaches without)"
            )
        return None

    def clear(self) -> bool:
        """More images would change nothing."""
        wrong, none = self.wrong, self.none
        if wrong is None or none is None or none <= 2 * WORSE or (wrong >= CLEAR and none >= 0):
            return True
        return bool(replace(self, wrong=None, none=None).fault())


@dataclass(frozen=True)
class Seen:
    """Images of one round, noised [b], with their labels, and each one's level."""

    x_0: Tensor
    noise: Tensor
    x_t: Tensor
    t: Tensor
    labels: Tensor
    places: Tensor
    levels: Tensor

    def of(self, chosen: Tensor) -> "Seen":
        """Some of them."""
        return Seen(*(value[chosen.to(value.device)] for value in vars(self).values()))

    def to(self, device: torch.device) -> "Seen":
        return Seen(*(value.to(device) for value in vars(self).values()))


@dataclass
class Sums:
    """Sums over what was seen of each level, for the best linear prediction of each channel and for the scale."""

    moments: Tensor
    """[l,c,6]: count, x_t, noise, x_t x_t, x_t noise, noise noise."""
    products: Tensor
    """[l,3]: noise p, p p, and the squared error, of predictions p."""
    gains: dict[str, list[Tensor]] = field(default_factory=lambda: {"wrong": [], "none": []})
    """Of the true labels, image by image [b], as shares of the linear error."""

    @classmethod
    def empty(cls, channels: int) -> "Sums":
        return cls(torch.zeros(len(SNRS), channels, 6).double(), torch.zeros(len(SNRS), 3).double())

    def add(self, batch: Seen, predicted: Tensor, levels: Tensor) -> None:
        x, e, p = (y.double().flatten(2) for y in (batch.x_t, batch.noise, predicted))
        each = torch.stack([torch.ones_like(x), x, e, x * x, x * e, e * e], dim=-1).sum(2).cpu()
        self.moments.index_add_(0, levels, each)
        products = torch.stack([e * p, p * p, (e - p).square()], dim=-1).sum((1, 2)).cpu()
        self.products.index_add_(0, levels, products)

    def linear(self) -> Tensor:
        """Mean squared error of the best prediction a x_t + b of each channel [l]."""
        _, x, e, xx, xe, ee = (self.moments / self.moments[..., :1]).unbind(-1)
        variance = (xx - x * x).clamp(min=1e-12)
        return (ee - e * e - (xe - x * e).square() / variance).mean(1)

    def figures(self, images: int) -> Figures:
        count = self.moments[..., 0].sum(1)
        noise_p, p_p, squared = self.products.unbind(-1)
        told = {name: _standard_errors(torch.cat(gains)) for name, gains in self.gains.items() if gains}
        return Figures(squared / count / self.linear(), noise_p / p_p.clamp(min=1e-12), images, **told)


def _standard_errors(gains: Tensor) -> float:
    return float(gains.mean() / (gains.std() / len(gains) ** 0.5).clamp(min=1e-12))


@torch.no_grad()
def look(
    teacher: nn.Module, dataset: Dataset, schedule: Schedule, seed: int, device: torch.device, labels: bool = True
) -> Figures:
    """The figures of a teacher on a run's first images, round by round.

    Args:
        labels: whether labels are looked at, where the teacher has several classes.
    """
    sums = Sums.empty(dataset.shape[0])
    labels = labels and len(known_classes(teacher)) > 1
    least, most = ROUNDS
    for number in range(most):
        seen = _seen(dataset, schedule, seed, number)
        _see(teacher, seen.to(device), sums, seed, labels)
        found = sums.figures((number + 1) * len(seen.levels))
        if number + 1 >= least and found.clear():
            break
    return found  # type: ignore[reportPossiblyUnbound]


def _see(teacher: nn.Module, seen: Seen, sums: Sums, seed: int, labels: bool) -> None:
    """One round with the true labels and, where they are looked at, its noisy part with wrong ones and with none."""
    denoiser, channels, levels = Denoiser(teacher), seen.x_0.shape[1], seen.levels.cpu()
    predicted = split(denoiser(seen.x_t, seen.t, seen.labels).float(), channels)[0]
    sums.add(seen, predicted, levels)
    if not labels:
        return
    noisy = levels >= SNRS.index(LABEL_SNR)
    part = seen.of(noisy)
    true, linear = _errors(predicted[noisy.to(predicted.device)], part), sums.linear()[levels[noisy]]
    others = {"wrong": _wrong(known_classes(teacher), seed, part), "none": torch.full_like(part.labels, NO_LABEL)}
    for name, given in others.items():
        output = split(denoiser(part.x_t, part.t, given).float(), channels)[0]
        sums.gains[name].append((_errors(output, part) - true) / linear)


def _errors(predicted: Tensor, batch: Seen) -> Tensor:
    """Noise error of each image [b]."""
    return (predicted - batch.noise).double().square().flatten(1).mean(1).cpu()


def _seen(dataset: Dataset, schedule: Schedule, seed: int, number: int) -> Seen:
    """The images of one round, noised to the levels in turn: the run's first ones, whatever its batch size."""
    count = len(SNRS) * AT_ONCE
    places = range(number * count, (number + 1) * count)
    draws = rng.Draws(seed, 0, places, 1)
    sample = dataset.batch(draws.indices(len(dataset)), draws)
    x_0, labels = sample["latents"], sample["labels"]
    levels = torch.arange(count) % len(SNRS)
    t = torch.tensor([_timestep(schedule, snr) for snr in SNRS])[levels]
    noise = draws.normal("teacher check", x_0.shape[1:])
    return Seen(x_0, noise, schedule.add_noise(x_0, noise, t), t, labels, torch.tensor(places), levels)


def _timestep(schedule: Schedule, snr: float) -> int:
    """The timestep whose signal-to-noise ratio is nearest."""
    return int(np.abs(np.log(schedule.snr / snr)).argmin())


def _wrong(classes: Sequence[int], seed: int, batch: Seen) -> Tensor:
    """For each image [b] one of the other classes."""
    known, labels = torch.tensor(classes), batch.labels.cpu()
    place = torch.searchsorted(known, labels).clamp(max=len(known) - 1)
    among = known[place] == labels
    drawn = rng.uniform(seed, "teacher check label", 0, batch.places.tolist())
    chosen = (drawn * (len(known) - among.long())).long()
    return known[chosen + (among & (chosen >= place)).long()].to(batch.labels.device)
