"""Whether a text-to-image teacher predicts what it should, on the run's first samples, before anything is written.

The questions of teacher_check.py, with captions in the place of labels: is the noise that follows from its prediction
nearer than the best linear prediction's, is it of the right size, and is it nearer under the true captions than under
others?
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from dit_shd.core.rng import Draws
from dit_shd.data.datasets import Dataset
from dit_shd.data.text_condition import TextCondition
from dit_shd.diffusion.adapters import Adapter
from dit_shd.diffusion.process import Process
from dit_shd.diffusion.teacher_check import (
    CLEAR,
    ENOUGH,
    LABEL_SNR,
    LEVEL_IMAGES,
    SNRS,
    WORSE,
    NoisedImages,
    Sums,
    TeacherMeasurement,
)
from dit_shd.models.offload import moved

ROUNDS = (2, 6)
"""Of len(SNRS) * LEVEL_IMAGES samples: at least, and at most, where captions are not clear before."""


@dataclass(frozen=True)
class TextTeacherCheck:
    """What is asked of a teacher, and on which samples."""

    adapter: Adapter
    process: Process
    dataset: Dataset
    empty: TextCondition
    """No caption [1,...]."""
    seed: int
    device: torch.device
    guidance: float | None = None

    @torch.no_grad()
    def findings(self, teacher: nn.Module, captions: bool) -> Iterator[tuple[str, str | None]]:
        """What there is to say of a teacher, and what it does that a good one does not.

        Args:
            teacher: The model.
            captions: Whether captions are compared; not where all are dropped.
        """
        result = self._measurement(moved(teacher, self.device), captions)
        of_noise = replace(result, wrong=None, none=None)
        words = of_noise.summary()
        if result.wrong is not None and result.none is not None:
            words += (
                f"; true captions {result.wrong:+.1f} standard errors better than others, {result.none:+.1f} than none"
            )
        fault = of_noise.fault() or _text_fault(result)
        yield f"teacher: {words}", f"{fault} ({words})" if fault else None

    def _measurement(self, teacher: nn.Module, captions: bool) -> TeacherMeasurement:
        """The figures of as many rounds as make them clear."""
        sums, rounds = Sums.empty(self.dataset.shape[0]), 0
        while True:
            self._add_round(teacher, sums, rounds, captions)
            rounds += 1
            result = sums.measurement(rounds * len(SNRS) * LEVEL_IMAGES)
            if rounds >= ROUNDS[1] or (rounds >= ROUNDS[0] and _conclusive(result)):
                return result

    def _add_round(self, teacher: nn.Module, sums: Sums, number: int, captions: bool) -> None:
        """One round with the true captions and, where they are compared, its noisy part with others and with none."""
        images, text = self._draw(number)
        levels = images.levels.cpu()
        predicted = self._noise(teacher, images, text)
        sums.add(images, predicted, levels)
        others = text.rolled()
        differs = (others.embeddings != text.embeddings).flatten(1).any(1).cpu()
        noisy = (levels >= SNRS.index(LABEL_SNR)) & differs
        if not captions or not bool(noisy.any()):
            return
        rows = noisy.to(predicted.device)
        part, true = images.subset(noisy), _errors(predicted[rows], images.noise[rows])
        linear = sums.linear()[levels[noisy]]
        everywhere = torch.ones(int(noisy.sum()), dtype=torch.bool, device=predicted.device)
        none = text.rows(rows).replaced(everywhere, self.empty)
        for name, other in (("wrong", others.rows(rows)), ("none", none)):
            sums.gains[name].append((_errors(self._noise(teacher, part, other), part.noise) - true) / linear)

    def _noise(self, teacher: nn.Module, images: NoisedImages, text: TextCondition) -> Tensor:
        output = self.adapter.predict(teacher, images.x_t, images.t, text, self.guidance)
        prediction, _ = self.process.prediction(output, images.x_t, images.t)
        return self.process.noise(prediction, images.x_t, images.t)

    def _draw(self, number: int) -> tuple[NoisedImages, TextCondition]:
        """The samples of one round, noised to the levels in turn: the run's first ones, whatever its batch size."""
        count = len(SNRS) * LEVEL_IMAGES
        positions = range(number * count, (number + 1) * count)
        draws = Draws(self.seed, 0, positions, 1)
        sample = self.dataset.batch(self.dataset.indices(draws), draws)
        x_0, levels = sample["latents"], torch.arange(count) % len(SNRS)
        t = torch.tensor([self.process.time_at(snr) for snr in SNRS])[levels]
        noise = draws.normal("teacher check", x_0.shape[1:])
        x_t = self.process.add_noise(x_0, noise, t)
        places = torch.tensor(positions)
        images = NoisedImages(x_0, noise, x_t, t, torch.zeros_like(places), places, levels)
        text = TextCondition(sample["text"], sample["text_mask"], sample.get("text_pooled"))
        return images.to(self.device), text.to(x_0.to(self.device))


def _errors(predicted: Tensor, noise: Tensor) -> Tensor:
    """Noise error of each sample [b]."""
    return (predicted - noise).double().square().flatten(1).mean(1).cpu()


def _conclusive(result: TeacherMeasurement) -> bool:
    """Whether more samples would change nothing."""
    if result.wrong is None or result.none is None or result.wrong >= CLEAR:
        return True
    return bool(replace(result, wrong=None, none=None).fault())


def _text_fault(result: TeacherMeasurement) -> str | None:
    """What a good teacher does not do with captions."""
    if result.none is not None and result.none <= WORSE:
        return "the captions make it worse than none: are they of other pictures?"
    if result.wrong is not None and result.wrong < ENOUGH:
        return (
            "it is no better under the true captions than under others: were they encoded by other text encoders, or "
            "do they say nothing of the pictures? (text_dropout=1 teaches without)"
        )
    return None
