"""Whether a teacher predicts what it should, measured on the run's first images before anything is written.

A teacher of velocity taught as noise, of other latents, of another schedule or with its classes in another order loads
and runs like a good one. Three questions of its noise error (DDPM eq. 14) tell them apart; a velocity is turned into
the noise that it predicts first:

- Is the error below that of the best linear prediction from x_t, noise level by noise level?
- Is the noise as large as it predicts? E[noise | x_t] has E[noise p] = E[p p]; another schedule or scale breaks that.
- Is the error lower under the true labels than under wrong ones, and not higher than under none? Image by image, on the
  same noise; images are added until that is clear.

All is drawn as a function of the seed for this purpose alone, by the main process: a run's own draws stay the same.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from dit_shd.core import rng
from dit_shd.data.datasets import Dataset
from dit_shd.data.model_origin import other_latents
from dit_shd.diffusion import class_names
from dit_shd.diffusion.denoiser import NO_LABEL, Denoiser, known_classes
from dit_shd.diffusion.process import Process
from dit_shd.models.offload import moved

SNRS = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03)
"""Noise levels: at lower and higher ones a good teacher is not much better than the linear prediction."""
LABEL_SNR = 1.0
"""Labels are compared where there is as much noise as this or more: there they decide what is predicted."""
LEVEL_IMAGES = 8
"""Images of each level in a round: one forward of 48 images, and two of 32 for the labels."""
ROUNDS = (2, 16)
"""At least, and at most, where labels are not clear before."""
SCALE = 1.3
"""How many times too small or too large a prediction may be."""
CLEAR, WORSE, ENOUGH = 4.0, -3.0, 2.0
"""Standard errors: of a gain that ends the rounds, of a loss against no label, of a gain that is one at the end."""


@dataclass
class TeacherMeasurement:
    """What was measured of a teacher, by noise level [l] and, of labels, over the images."""

    error: Tensor
    """The teacher's noise error as a share of the best linear prediction's [l]."""
    scale: Tensor
    """What the prediction would have to be multiplied by [l]; 1 is right."""
    images: int
    """How many were used."""
    wrong: float | None = None
    """Gain of the true labels over wrong ones, in standard errors; None: not compared."""
    none: float | None = None
    """The same over no labels."""

    def summary(self) -> str:
        """The figures in a line."""
        error, scale = (f"{x.min():.2f} to {x.max():.2f}" for x in (self.error, self.scale))
        words = f"noise error {error} of the best linear prediction's, scale {scale}"
        if self.wrong is not None:
            words += (
                f"; true labels {self.wrong:+.1f} standard errors better than wrong ones, {self.none:+.1f} than none"
            )
        return f"{words} ({self.images} images)"

    def fault(self) -> str | None:
        """What a good teacher does not do, with the likely reasons; labels are judged where the noise is right."""
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

    def conclusive(self) -> bool:
        """Whether more images would change nothing."""
        wrong, none = self.wrong, self.none
        if wrong is None or none is None or none <= 2 * WORSE or (wrong >= CLEAR and none >= 0):
            return True
        return bool(replace(self, wrong=None, none=None).fault())


@dataclass(frozen=True)
class NoisedImages:
    """Images of one round, noised to the levels in turn [b], with their labels."""

    x_0: Tensor
    """Latents [b,c,y,x]."""
    noise: Tensor
    """Of the same shape."""
    x_t: Tensor
    """x_0 noised to time t."""
    t: Tensor
    """Times of the process [b]."""
    labels: Tensor
    """Classes [b]."""
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
    """Of the true labels, image by image [b], as shares of the linear error."""

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

    def measurement(self, images: int) -> TeacherMeasurement:
        """The figures of all images added."""
        count = self.moments[..., 0].sum(1)
        noise_p, p_p, squared = self.products.unbind(-1)
        gains = {name: _standard_errors(torch.cat(values)) for name, values in self.gains.items() if values}
        return TeacherMeasurement(squared / count / self.linear(), noise_p / p_p.clamp(min=1e-12), images, **gains)


def _standard_errors(gains: Tensor) -> float:
    return float(gains.mean() / (gains.std() / len(gains) ** 0.5).clamp(min=1e-12))


def findings(
    teacher: nn.Module, dataset: Dataset, process: Process, seed: int, device: torch.device, dropout: float, ask: bool
) -> Iterator[tuple[str, str | None]]:
    """What there is to say of a teacher, question by question: in words, and what it does that a good one does not.

    Args:
        teacher: A class-conditional model.
        dataset: What the run learns from.
        process: The teacher's own.
        seed: The run's.
        device: Where the teacher goes.
        dropout: Share of labels that are dropped; where all are, no labels are compared.
        ask: Whether to measure its predictions, too; else names of classes alone are compared.
    """
    yield "", latents_fault(teacher, dataset)
    labels, classes = dropout < 1, known_classes(teacher)
    if labels and classes != [0]:
        words, right = class_names.compare(teacher, dataset)
        yield (f"classes: {words}", None) if right else ("", words)
    if not ask:
        return
    result = measure(moved(teacher, device), dataset, process, seed, device, labels)
    skipped = ""
    if result.wrong is None:
        why = "it has one class" if len(classes) < 2 else "label_dropout is 1"
        skipped = f"; labels were not compared, since {why}"
    fault = result.fault()
    yield f"teacher: {result.summary()}{skipped}", f"{fault} ({result.summary()})" if fault else None


def latents_fault(teacher: nn.Module, dataset: Dataset) -> str | None:
    """That a teacher has learned latents of another autoencoder, or of another scaling, than the data's.

    Args:
        teacher: The model, whose config says where it is from.
        dataset: What the run learns from.
    """
    settings: Any = getattr(teacher, "config", {})
    return other_latents(str(settings.get("_name_or_path") or ""), dataset.origin, dataset.shape[0])


@torch.no_grad()
def measure(
    teacher: nn.Module, dataset: Dataset, process: Process, seed: int, device: torch.device, labels: bool = True
) -> TeacherMeasurement:
    """The figures of a teacher on a run's first images, round by round.

    Args:
        teacher: A class-conditional model.
        dataset: What the run learns from.
        process: The teacher's own.
        seed: The run's.
        device: Where the teacher is.
        labels: Whether labels are compared, where the teacher has several classes.

    Returns:
        The figures of as many rounds as make them clear.
    """
    sums = Sums.empty(dataset.shape[0])
    labels = labels and len(known_classes(teacher)) > 1
    least, most = ROUNDS
    for number in range(most):
        images = _draw_images(dataset, process, seed, number)
        _add_round(teacher, process, images.to(device), sums, seed, labels)
        result = sums.measurement((number + 1) * len(images.levels))
        if number + 1 >= least and result.conclusive():
            break
    return result  # type: ignore[reportPossiblyUnbound]


def _add_round(teacher: nn.Module, process: Process, images: NoisedImages, sums: Sums, seed: int, labels: bool) -> None:
    """One round with the true labels and, where they are compared, its noisy part with wrong ones and with none."""
    levels = images.levels.cpu()
    predicted = _predict_noise(teacher, process, images, images.labels)
    sums.add(images, predicted, levels)
    if not labels:
        return
    noisy = levels >= SNRS.index(LABEL_SNR)
    part = images.subset(noisy)
    true, linear = _errors(predicted[noisy.to(predicted.device)], part), sums.linear()[levels[noisy]]
    others = {
        "wrong": _wrong_labels(known_classes(teacher), seed, part),
        "none": torch.full_like(part.labels, NO_LABEL),
    }
    for name, other in others.items():
        sums.gains[name].append((_errors(_predict_noise(teacher, process, part, other), part) - true) / linear)


def _predict_noise(teacher: nn.Module, process: Process, images: NoisedImages, labels: Tensor) -> Tensor:
    output = Denoiser(teacher).predict(images.x_t, images.t, labels)
    prediction, _ = process.prediction(output, images.x_t, images.t)
    return process.noise(prediction, images.x_t, images.t)


def _errors(predicted: Tensor, batch: NoisedImages) -> Tensor:
    """Noise error of each image [b]."""
    return (predicted - batch.noise).double().square().flatten(1).mean(1).cpu()


def _draw_images(dataset: Dataset, process: Process, seed: int, number: int) -> NoisedImages:
    """The images of one round, noised to the levels in turn: the run's first ones, whatever its batch size."""
    count = len(SNRS) * LEVEL_IMAGES
    positions = range(number * count, (number + 1) * count)
    draws = rng.Draws(seed, 0, positions, 1)
    sample = dataset.batch(draws.indices(len(dataset)), draws)
    x_0, labels = sample["latents"], sample["labels"]
    levels = torch.arange(count) % len(SNRS)
    t = torch.tensor([process.time_at(snr) for snr in SNRS])[levels]
    noise = draws.normal("teacher check", x_0.shape[1:])
    x_t = process.add_noise(x_0, noise, t)
    return NoisedImages(x_0, noise, x_t, t, labels, torch.tensor(positions), levels)


def _wrong_labels(classes: Sequence[int], seed: int, batch: NoisedImages) -> Tensor:
    """For each image [b] one of the other classes."""
    known, labels = torch.tensor(classes), batch.labels.cpu()
    place = torch.searchsorted(known, labels).clamp(max=len(known) - 1)
    among = known[place] == labels
    drawn = rng.uniform(seed, "teacher check label", 0, batch.positions.tolist())
    chosen = (drawn * (len(known) - among.long())).long()
    return known[chosen + (among & (chosen >= place)).long()].to(batch.labels.device)
