"""MNIST and Fashion-MNIST (28x28, 60,000 images to train and 10,000 to test) in the four files they are published as.

Debian ships Fashion-MNIST (Xiao et al., arXiv 1708.07747; MIT licence): `apt install dataset-fashion-mnist`. MNIST's
digits lie in files of the same names.
"""

import gzip
import zlib
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dit_shd.core.errors import UserError
from dit_shd.core.places import expanded
from dit_shd.data.datasets import ImagesInMemory

FASHION = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package puts it."""
NAMES = {
    "fashion": ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Boot"),
    "digits": tuple("0123456789"),
}
SIDE, HELD_OUT = 28, 5000
IMAGES, LABELS = 2051, 2049
"""The first four bytes of a file of images and of one of labels (the format is called IDX)."""
MOST = 10**6
"""Images that such a file may announce."""


class MNIST(ImagesInMemory):
    """Images of one channel: as latents in [-1, 1], and as they are.

    Args:
        kind: Digits or fashion.
        split: `train` (but for the last 5,000 images), validation (those), all (both), or test.
        path: The folder of the four files, compressed by gzip or not; empty: where Debian puts Fashion-MNIST.
    """

    classes = 10

    def __init__(
        self,
        kind: Literal["digits", "fashion"] = "digits",
        split: Literal["train", "validation", "all", "test"] = "train",
        path: Path | None = None,
    ) -> None:
        folder = _folder(kind, path)
        part = "t10k" if split == "test" else "train"
        images = _read(folder, f"{part}-images-idx3-ubyte", IMAGES, (SIDE, SIDE))
        labels = _read(folder, f"{part}-labels-idx1-ubyte", LABELS, ())
        if len(images) != len(labels) or labels.max(initial=0) >= self.classes:
            raise UserError(
                f"{folder}: wanted as many labels as images, from 0 to 9, found {len(labels)} up to "
                f"{labels.max(initial=0)} for {len(images)} images"
            )
        first, last = {"train": (0, -HELD_OUT), "validation": (-HELD_OUT, None)}.get(split, (0, None))
        super().__init__(images[first:last, ..., None], labels[first:last].astype(np.int64))
        if not len(self):
            raise UserError(f"{folder}: wanted more than {HELD_OUT} images for split={split}, found {len(images)}")
        self.class_names = NAMES[kind]

    @classmethod
    def described(cls, **options: Any) -> str:
        """Whose the data are, in a line."""
        if options.get("kind") == "fashion":
            return "Fashion-MNIST (28x28; Zalando SE; MIT licence)"
        return "MNIST digits (28x28; LeCun, Cortes and Burges; CC BY-SA 3.0)"


def _folder(kind: str, path: Path | None) -> Path:
    if path is not None:
        return Path(expanded(path))
    if kind == "digits":
        raise UserError(
            "data mnist: path: wanted the folder of MNIST's four files (train-images-idx3-ubyte.gz, ...), found none; "
            "5,000 of the digits come with dit_shd: data={name: digits}"
        )
    return FASHION


def _read(folder: Path, name: str, magic: int, shape: tuple[int, ...]) -> np.ndarray:
    """uint8 [n, *shape] of an IDX file.

    Raises:
        UserError: It is not there, or something else.
    """
    file = next((file for file in (folder / f"{name}.gz", folder / name) if file.is_file()), None)
    if file is None:
        hint = "; apt install dataset-fashion-mnist brings it" if folder == FASHION else ""
        raise UserError(f"data mnist: wanted {name}.gz in {folder}, found none{hint}")
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            head = np.frombuffer(stream.read(4 * (2 + len(shape))), ">u4").tolist()
            if head[:1] != [magic] or tuple(head[2:]) != shape or not 0 < head[1] <= MOST:
                raise ValueError(f"its head says {head}")
            size = head[1] * int(np.prod(shape, dtype=int))
            data = stream.read(size + 1)
            if len(data) != size:
                raise ValueError(f"it announces {size} bytes and has {'more' if len(data) > size else len(data)}")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{file}: not such a file of MNIST ({error}); copy or download it again") from error
    return np.frombuffer(data, np.uint8).reshape(head[1], *shape)
