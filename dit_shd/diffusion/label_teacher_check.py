"""Whether a class-conditional teacher predicts what it should: the questions of teacher_check.py, of labels."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dit_shd.core import rng
from dit_shd.diffusion import class_names
from dit_shd.diffusion.denoiser import NO_LABEL, Denoiser, known_classes
from dit_shd.diffusion.teacher_check import NoisedImages, TeacherCheck, Words


@dataclass(frozen=True)
class LabelTeacherCheck(TeacherCheck[Tensor]):
    """What is asked of a teacher that is given labels [b]."""

    words = Words(
        "true labels",
        "wrong ones",
        "the labels make it worse than none: are its classes in another order than the data's, or have the data no "
        "labels? (label_dropout=1 teaches without)",
        "it is no better under the true labels than under wrong ones: are its classes others than the data's, or has "
        "it none? (label_dropout=1 teaches without)",
    )
    most_rounds = 16

    def questions(self, teacher: nn.Module, dropout: float, measure: bool) -> Iterator[tuple[str, str | None]]:
        """What there is to say of a teacher, question by question, and what it does that a good one does not.

        Args:
            teacher: A class-conditional model.
            dropout: Share of labels that are dropped; where all are, no labels are compared.
            measure: Whether to measure its predictions, too; else names of classes alone are compared.
        """
        labels, classes = dropout < 1, known_classes(teacher)
        if labels and classes != [0]:
            words, right = class_names.compare(teacher, self.dataset)
            yield (f"classes: {words}", None) if right else ("", words)
        if not measure:
            return
        compare, why = labels and len(classes) > 1, "it has one class" if len(classes) < 2 else "label_dropout is 1"
        yield from self.findings(teacher, compare, "" if compare else f"; labels were not compared, since {why}")

    def condition(self, sample: Mapping[str, Tensor]) -> Tensor:
        return sample["labels"].to(self.device)

    def others(self, teacher: nn.Module, images: NoisedImages, true: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        wrong = _wrong_labels(known_classes(teacher), self.seed, images, true)
        return wrong, torch.full_like(true, NO_LABEL), wrong != true

    def predict(self, teacher: nn.Module, images: NoisedImages, condition: Tensor) -> Tensor:
        return Denoiser(teacher).predict(images.x_t, images.t, condition)


def _wrong_labels(classes: Sequence[int], seed: int, images: NoisedImages, labels: Tensor) -> Tensor:
    """For each image [b] one of the other classes."""
    known, true = torch.tensor(classes), labels.cpu()
    place = torch.searchsorted(known, true).clamp(max=len(known) - 1)
    among = known[place] == true
    drawn = rng.uniform(seed, "teacher check label", 0, images.positions.tolist())
    chosen = (drawn * (len(known) - among.long())).long()
    return known[chosen + (among & (chosen >= place)).long()].to(labels.device)
