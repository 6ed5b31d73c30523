"""Accuracy of an image classifier: the share of images whose class is among the first k, with an interval.

The interval is Wilson's (1927) for a share of independent trials, 95%: unlike the normal approximation it stays inside
[0, 1] and holds for few images and for shares near 0 or 1. It tells how far the figure moves with other images of the
same kind; another training seed moves it, too, and that it leaves out.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dit_shd.core.errors import UserError, one_line
from dit_shd.data.datasets import Dataset
from dit_shd.evaluation.metrics import NORMAL

RANKS = (1, 5)


def of_learned(key: str) -> str:
    """The warning that the images under a key are those of the training."""
    return f"{key}: are the images that are learned, so that the accuracy is not of held-out images"


@dataclass(frozen=True)
class Accuracy:
    """The number of images whose class was among the first k."""

    images: int
    correct: dict[int, int]
    """By k."""

    def figures(self) -> dict[str, float]:
        """`top1`, and the ends of its interval as `top1_low` and `top1_high`; likewise for other k; and `images`.

        Raises:
            UserError: Of no image.
        """
        if not self.images:
            raise UserError("accuracy: wanted images that can be decoded, found none")
        figures: dict[str, float] = {}
        for k, count in self.correct.items():
            low, high = wilson(count, self.images)
            figures |= {f"top{k}": count / self.images, f"top{k}_low": low, f"top{k}_high": high}
        return {**figures, "images": float(self.images)}

    def __add__(self, other: "Accuracy") -> "Accuracy":
        correct = {k: self.correct.get(k, 0) + other.correct.get(k, 0) for k in {**self.correct, **other.correct}}
        return Accuracy(self.images + other.images, correct)


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """The 95% interval of a share: (p + z^2/2n -+ z sqrt(p (1-p)/n + z^2/4n^2)) / (1 + z^2/n)."""
    share, spread = successes / trials, NORMAL**2 / trials
    half = NORMAL * math.sqrt(share * (1 - share) / trials + spread / (4 * trials))
    low, high = ((share + spread / 2 + sign * half) / (1 + spread) for sign in (-1, 1))
    return (0.0 if successes == 0 else low), (1.0 if successes == trials else high)


Names = Sequence[str | None]
"""Of classes in order, "" or None for one without a name."""


def misnamed(known: Names | None, names: Names | None) -> str | None:
    """The first class that has one name in a model and another in images, in words; None where there is none.

    Names that differ in case alone, or in spaces, - and _, are one. Names of two languages, none of which both have,
    say nothing: that is `all_misnamed`.

    Args:
        known: The model's classes; None where none is known.
        names: The images', likewise.
    """
    if known is None or names is None or not _share_a_name(known, names):
        return None
    spelt, pairs = _spelling(known, names), enumerate(zip(known, names))
    first = next(((i, a, b) for i, (a, b) in pairs if a and b and spelt(a) != spelt(b)), None)
    return None if first is None else f"class {first[0]} is '{one_line(first[2])}', not '{one_line(first[1])}'"


def all_misnamed(known: Names | None, names: Names | None) -> str | None:
    """That no class of a model is one of the images' by its name, in words; None where one is, or nothing is known.

    They may be the same in two languages (n01440764 and tench), in any order: only their places are left to go by.

    Args:
        known: The model's classes; None where none is known.
        names: The images', likewise.
    """
    first = next(((i, a, b) for i, (a, b) in enumerate(zip(known or (), names or ())) if a and b), None)
    if first is None or known is None or names is None or _share_a_name(known, names):
        return None
    i, there, here = first[0], one_line(first[1]), one_line(first[2])
    return f"no name is in both, class {i} is '{here}', not '{there}': classes are matched by place"


def _share_a_name(known: Names, names: Names) -> bool:
    spelt = _spelling(known, names)
    return bool({spelt(name) for name in known if name} & {spelt(name) for name in names if name})


def _spelling(known: Names, names: Names) -> Callable[[str], str]:
    """By what names are compared: as they are, where case tells two classes apart (letters A and a)."""
    apart = all(len({_plain(name) for name in each if name}) == len({*filter(None, each)}) for each in (known, names))
    return _plain if apart else str


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def count_correct(logits: Tensor, labels: Tensor) -> Accuracy:
    """The accuracy of logits [b,k] for classes [b]; top-5 only where there are more than 5 classes.

    Raises:
        UserError: A logit is not finite.
    """
    if not bool(torch.isfinite(logits).all()):
        raise UserError("accuracy: the model's logits are not finite (NaN or infinity)")
    ranks = _ranks(logits.shape[1])
    order = logits.topk(max(ranks), dim=1).indices
    return Accuracy(len(labels), {k: int((order[:, :k] == labels[:, None]).sum()) for k in ranks})


def _ranks(classes: int) -> list[int]:
    return [k for k in RANKS if k == 1 or k < classes]


@torch.no_grad()
def measure_accuracy(
    predict: Callable[[Tensor], Tensor],
    dataset: Dataset,
    transform: Callable[[np.ndarray], Tensor],
    indices: Sequence[int],
    device: torch.device,
    batch_size: int = 64,
) -> Accuracy:
    """Accuracy on some images of a dataset; those that cannot be decoded are left out, as the warning of each says.

    Args:
        predict: Logits [b,k] of inputs [b,c,y,x].
        dataset: With `images` among its fields.
        transform: An image uint8 [y,x,c] as an input [c,y,x].
        indices: The indices of the images.
        device: Where inputs go.
        batch_size: Images of one forward.

    Raises:
        UserError: A logit is not finite.
    """
    labels, total = dataset.labels(), Accuracy(0, dict.fromkeys(_ranks(dataset.classes), 0))
    for first in range(0, len(indices), batch_size):
        batch = {int(index): dataset.measured(int(index)) for index in indices[first : first + batch_size]}
        whole = {index: image for index, image in batch.items() if image is not None}
        if not whole:
            continue
        pixels = torch.stack([transform(image) for image in whole.values()])
        logits = predict(pixels.to(device)).float().cpu()
        total += count_correct(logits, torch.from_numpy(labels[list(whole)]))
    return total
