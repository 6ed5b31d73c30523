"""Whether a teacher predicts what it should, measured on the run's first images before anything is written.

A teacher of velocity taught as noise, of other latents, of another schedule or with its classes in another order loads
and runs like a good one. Three questions of its noise error (DDPM eq. 14) tell them apart; a velocity is turned into
the noise that it predicts first:

- Is the error below that of the best linear prediction from x_t, noise level by noise level?
- Is the noise as large as it predicts? E[noise | x_t] has E[noise p] = E[p p]; another schedule or scale breaks that.
- Is the error lower under the true condition (label, caption) than under wrong ones, and not higher than under none?
  Image by image, on the same noise; images are added until both are clear.

All is drawn as a function of the seed for this purpose alone, by the main process: a run's own draws stay the same.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from dit_shd.core.rng import Draws
from dit_shd.data.datasets import Dataset
from dit_shd.data.model_origin import loaded_from, other_latents
from dit_shd.data.text_condition import TextCondition
from dit_shd.diffusion.process import Process
from dit_shd.models.offload import moved

SNRS = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03)
"""Noise levels: at lower and higher ones a good teacher is not much better than the linear prediction."""
CONDITION_SNR = 1.0
"""Conditions are compared where there is as much noise as this or more: there they decide what is predicted."""
LEVEL_IMAGES = 8
"""Images of each level in a round: one forward of 48 images, and two of 32 for the other conditions."""
LEAST_ROUNDS = 2
SCALE = 1.3
"""How many times too small or too large a prediction may be."""
CLEAR, WORSE, ENOUGH = 4.0, -3.0, 2.0
"""Standard errors: of a gain that ends the rounds, of a loss against no condition, of a gain that is one at the end."""

Condition = TypeVar("Condition", Tensor, TextCondition)
"""Of images [b]: labels, or what text encoders make of captions."""


@dataclass(frozen=True)
class Words:
    """How the conditions of a kind are spoken of."""

    true: str
    wrong: str
    worse: str
    """What is wrong where they are worse than none."""
    useless: str
    """What is wrong where they are no better than wrong ones."""


@dataclass
class TeacherMeasurement:
    """What was measured of a teacher, by noise level [l] and, of conditions, over the images."""

    words: Words
    error: Tensor
    """The teacher's noise error as a share of the best linear prediction's [l]."""
    scale: Tensor
    """What the prediction would have to be multiplied by [l]; 1 is right."""
    images: int
    """How many were used."""
    wrong: float | None = None
    """Gain of the true conditions over wrong ones, in standard errors; None: not compared."""
    none: float | None = None
    """The same over none."""

    def summary(self) -> str:
        """The figures in a line."""
        error, scale = (f"{x.min():.2f} to {x.max():.2f}" for x in (self.error, self.scale))
        line = f"noise error {error} of the best linear prediction's, scale {scale}"
        if self.wrong is not None:
            line += f"; {self.words.true} {self.wrong:+.1f} standard errors better than {self.words.wrong}, "
            line += f"{self.none:+.1f} than none"
        return f"{line} ({self.images} images)"

    def fault(self) -> str | None:
        """What a good teacher does not do, with the likely reasons; conditions are judged where the noise is right."""
        if not bool((self.error < 1).all()):
            return (
                "its noise error is no better than a linear prediction's: does it predict velocity or x_0, or another "
                "convention of velocity than its config says, come from other latents (scale, autoencoder, channels, "
                "pixel range), have another schedule, or is it untrained (or its average, ema, longer than training)?"
            )
        if not bool(((self.scale < SCALE) & (self.scale > 1 / SCALE)).all()):
            return (
                "its prediction is of another size than the noise: was it trained with another schedule "
                "(task.timesteps) or on latents of another scale?"
            )
        if self.none is not None and self.none <= WORSE:
            return self.words.worse
        if self.wrong is not None and self.wrong < ENOUGH:
            return self.words.useless
        return None

    def conclusive(self) -> bool:
        """Whether more images would change nothing."""
        wrong, none = self.wrong, self.none
        if wrong is None or none is None or none <= 2 * WORSE or (wrong >= CLEAR and none >= 0):
            return True
        return bool(replace(self, wrong=None, none=None).fault())


@dataclass(frozen=True)
class NoisedImages:
    """Images of one round, noised to the levels in turn [b]."""

    noise: Tensor
    """[b,c,y,x]"""
    x_t: Tensor
    """Latents noised to time t, of the same shape."""
    t: Tensor
    """Times of the process [b]."""
    positions: Tensor
    """In the run's order of samples [b]."""
    levels: Tensor
    """Index into SNRS [b]."""

    def subset(self, chosen: Tensor) -> "NoisedImages":
        """Those of a mask [b]."""
        return NoisedImages(*(value[chosen.to(value.device)] for value in vars(self).values()))

    def to(self, device: torch.device) -> "NoisedImages":
        """The same on another device."""
        return NoisedImages(*(value.to(device) for value in vars(self).values()))


@dataclass
class Sums:
    """Sums over the images of each level [l], for the best linear prediction of each channel and for the scale."""

    moments: Tensor
    """[l,c,6]: count, x_t, noise, x_t x_t, x_t noise, noise noise."""
    products: Tensor
    """[l,3]: noise p, p p, and the squared error, of predictions p."""
    gains: dict[str, list[Tensor]] = field(default_factory=lambda: {"wrong": [], "none": []})
    """Of the true conditions, image by image [b], as shares of the linear error."""

    @classmethod
    def empty(cls, channels: int) -> "Sums":
        """The sums of no images."""
        return cls(torch.zeros(len(SNRS), channels, 6).double(), torch.zeros(len(SNRS), 3).double())

    def add(self, batch: NoisedImages, predicted: Tensor, levels: Tensor) -> None:
        """Add predictions [b,c,y,x] of the noise of some images, whose levels are given on the CPU."""
        x, e, p = (y.double().flatten(2) for y in (batch.x_t, batch.noise, predicted))
        moments = torch.stack([torch.ones_like(x), x, e, x * x, x * e, e * e], dim=-1).sum(2).cpu()
        self.moments.index_add_(0, levels, moments)
        products = torch.stack([e * p, p * p, (e - p).square()], dim=-1).sum((1, 2)).cpu()
        self.products.index_add_(0, levels, products)

    def linear(self) -> Tensor:
        """Mean squared error of the best prediction a x_t + b of each channel [l]."""
        _, x, e, xx, xe, ee = (self.moments / self.moments[..., :1]).unbind(-1)
        variance = (xx - x * x).clamp(min=1e-12)
        return (ee - e * e - (xe - x * e).square() / variance).mean(1)

    def measurement(self, images: int, words: Words) -> TeacherMeasurement:
        """The figures of all images added."""
        count = self.moments[..., 0].sum(1)
        noise_p, p_p, squared = self.products.unbind(-1)
        gains = {name: _standard_errors(torch.cat(values)) for name, values in self.gains.items() if values}
        error, scale = squared / count / self.linear(), noise_p / p_p.clamp(min=1e-12)
        return TeacherMeasurement(words, error, scale, images, **gains)


def _standard_errors(gains: Tensor) -> float:
    return float(gains.mean() / (gains.std() / len(gains) ** 0.5).clamp(min=1e-12))


@dataclass(frozen=True)
class TeacherCheck(ABC, Generic[Condition]):
    """What is asked of a teacher, and on which samples."""

    process: Process
    dataset: Dataset
    """What the run learns from."""
    seed: int
    """The run's."""
    device: torch.device
    """Where the teacher goes."""
    words: ClassVar[Words]
    most_rounds: ClassVar[int]
    """Where conditions are not clear before."""

    @abstractmethod
    def condition(self, sample: Mapping[str, Tensor]) -> Condition:
        """What the teacher is given with samples, on the device."""

    @abstractmethod
    def others(self, teacher: nn.Module, images: NoisedImages, true: Condition) -> tuple[Condition, Condition, Tensor]:
        """Wrong conditions of images, none, and where the wrong ones are others than the true ones [b]."""

    @abstractmethod
    def predict(self, teacher: nn.Module, images: NoisedImages, condition: Condition) -> Tensor:
        """A teacher's output [b, c or 2c, y, x] in the terms of the process."""

    def findings(self, teacher: nn.Module, compare: bool, remark: str = "") -> Iterator[tuple[str, str | None]]:
        """What there is to say of a teacher's predictions, and what it does that a good one does not.

        Args:
            teacher: The model.
            compare: Whether conditions are compared; not where all are dropped.
            remark: To be said after the figures.
        """
        result = self.measure(teacher, compare)
        words, fault = result.summary(), result.fault()
        yield f"teacher: {words}{remark}", f"{fault} ({words})" if fault else None

    @torch.no_grad()
    def measure(self, teacher: nn.Module, compare: bool = True) -> TeacherMeasurement:
        """The figures of as many rounds as make them clear."""
        teacher, sums, rounds = moved(teacher, self.device), Sums.empty(self.dataset.shape[0]), 0
        while True:
            self._add_round(teacher, sums, rounds, compare)
            rounds += 1
            result = sums.measurement(rounds * len(SNRS) * LEVEL_IMAGES, self.words)
            if rounds >= self.most_rounds or (rounds >= LEAST_ROUNDS and result.conclusive()):
                return result

    def _add_round(self, teacher: nn.Module, sums: Sums, number: int, compare: bool) -> None:
        """One round with the true conditions and, where they are compared, its noisy part with wrong ones and none."""
        images, condition = self.draw(number)
        levels = images.levels.cpu()
        predicted = self._noise(teacher, images, condition)
        sums.add(images, predicted, levels)
        if not compare:
            return
        wrong, none, differs = self.others(teacher, images, condition)
        noisy = (levels >= SNRS.index(CONDITION_SNR)) & differs.cpu()
        if not bool(noisy.any()):
            return
        part, rows = images.subset(noisy), noisy.to(predicted.device)
        true, linear = _errors(predicted[rows], part), sums.linear()[levels[noisy]]
        for name, other in (("wrong", wrong), ("none", none)):
            sums.gains[name].append((_errors(self._noise(teacher, part, other[rows]), part) - true) / linear)

    def _noise(self, teacher: nn.Module, images: NoisedImages, condition: Condition) -> Tensor:
        prediction, _ = self.process.prediction(self.predict(teacher, images, condition), images.x_t, images.t)
        return self.process.noise(prediction, images.x_t, images.t)

    def draw(self, number: int) -> tuple[NoisedImages, Condition]:
        """The images of one round, noised to the levels in turn: the run's first ones, whatever its batch size."""
        count = len(SNRS) * LEVEL_IMAGES
        positions = range(number * count, (number + 1) * count)
        draws = Draws(self.seed, 0, positions, 1)
        sample = self.dataset.batch(self.dataset.indices(draws), draws)
        x_0, levels = sample["latents"], torch.arange(count) % len(SNRS)
        t = torch.tensor([self.process.time_at(snr) for snr in SNRS])[levels]
        noise = draws.normal("teacher check", x_0.shape[1:])
        images = NoisedImages(noise, self.process.add_noise(x_0, noise, t), t, torch.tensor(positions), levels)
        return images.to(self.device), self.condition(sample)


def _errors(predicted: Tensor, images: NoisedImages) -> Tensor:
    """Noise error of each image [b]."""
    return (predicted - images.noise).double().square().flatten(1).mean(1).cpu()


def latents_fault(teacher: nn.Module, dataset: Dataset) -> str | None:
    """That a teacher has learned latents of another autoencoder, or of another scaling, than the data's.

    Args:
        teacher: The model, whose config says where it is from.
        dataset: What the run learns from.
    """
    return other_latents(loaded_from(teacher), dataset.origin, dataset.shape[0])
