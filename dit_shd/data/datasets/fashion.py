"""Fashion-MNIST by a name of its own: `data: fashion`, `reference=fashion:test` (see mnist.py)."""

from pathlib import Path
from typing import Any, Literal

from dit_shd.data.datasets.mnist import MNIST


class Fashion(MNIST):
    """60,000 images of clothes to train and 10,000 to test, 28x28, ten classes.

    Args:
        split: `train` (but for the last 5,000 images), validation (those), all (both), or test.
        path: The folder of the four files; empty: where Debian's dataset-fashion-mnist puts them.
    """

    def __init__(
        self, split: Literal["train", "validation", "all", "test"] = "train", path: Path | None = None
    ) -> None:
        super().__init__("fashion", split, path)

    @classmethod
    def described(cls, **options: Any) -> str:
        """Whose the data are, in a line."""
        return MNIST.described(kind="fashion", **options)
