"""Images with classes, wherever they are: class folders (ImageFolder) and Hugging Face datasets, read one by one."""

import logging
from functools import lru_cache
from typing import Any

import numpy as np
from torch import Tensor

from dit_shd.core.errors import UserError
from dit_shd.core.launcher import is_first_process
from dit_shd.core.places import Place
from dit_shd.core.rng import Draws
from dit_shd.data.datasets import Dataset
from dit_shd.data.preprocessing import decoded
from dit_shd.data.sources.base import BrokenImage, Selection
from dit_shd.data.sources.detect import open_source
from dit_shd.data.sources.npz import NpzSource
from dit_shd.data.sources.parquet import ParquetImages

_log = logging.getLogger("dit_shd")


class Images(Dataset):
    """Images of any size, decoded when they are used.

    Args:
        path: A folder of class folders, a dataset that `datasets` saved, or hub:OWNER/NAME.
        split: Of several.
        subset: Of several.
        image_column: Of a dataset; empty: image, img, jpg, ..., or the only one of images.
        label_column: Of a dataset and of metadata files; empty: label, labels, cls, ..., or the only one of classes
            (ClassLabel).
        follow_links: Read what links in a folder lead to, outside of it.
    """

    fields = frozenset({"images", "labels"})
    shape = (3, 0, 0)

    def __init__(
        self,
        path: Place,
        split: str | None = None,
        subset: str | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
        follow_links: bool = False,
    ) -> None:
        self._source = open_source(str(path), Selection(split, subset, image_column, label_column, follow_links))
        if isinstance(self._source, (NpzSource, ParquetImages)):
            remedy = "name: npz" if isinstance(self._source, NpzSource) else "datasets' save_to_disk of it"
            raise UserError(f"data images: '{path}': is read in order only, and training takes any; use {remedy}")
        self.classes, self.class_names = len(self._source.classes), self._source.classes
        self.notes = tuple(self._source.notes)
        for note in self.notes:
            _say_once(str(path), note)
        self._path, self._broken = str(path), dict[int, str]()

    @classmethod
    def described(cls, **options: Any) -> str:
        """Whose the data are, in a line."""
        return f"images of {options.get('path')}"

    def __len__(self) -> int:
        return len(self._source)

    def image(self, index: int) -> np.ndarray:
        """One image, uint8 [y,x,3]; in place of one that cannot be decoded the next of its class.

        Raises:
            UserError: There is none in its place.
        """
        pixels = self._pixels(index)
        if pixels is None:
            same = np.flatnonzero(self._source.labels == self._source.labels[index])
            at = int(np.searchsorted(same, index))
            others = (self._pixels(int(other)) for other in np.roll(same, -at)[1:8])
            pixels = next((other for other in others if other is not None), None)
        if pixels is None:
            where, reason = self._source.name(index), self._broken[index]
            raise UserError(f"{where}: cannot be decoded, nor the next ones of its class ({reason})")
        return pixels

    def measured(self, index: int) -> np.ndarray | None:
        return self._pixels(index)

    def _pixels(self, index: int) -> np.ndarray | None:
        """One image; None, and a warning the first time, if it cannot be decoded."""
        try:
            return np.asarray(decoded(self._source.raw(index))[0])
        except BrokenImage as error:
            if index not in self._broken:
                self._broken[index] = str(error)  # the error itself would keep the bytes
                _say_broken(self._path, self._source.name(index), str(error))
        return None

    def batch(self, indices: np.ndarray, draws: Draws) -> dict[str, Tensor]:
        raise UserError("data images: are of any size and have no latents; encode them first: dit-shd encode")

    def images(self) -> np.ndarray:
        raise UserError("data images: may differ in size; dit-shd encode or a folder of one size is for this")

    def labels(self) -> np.ndarray:
        """int64 [n]."""
        return self._source.labels


@lru_cache(maxsize=4096)
def _say_broken(path: str, name: str, reason: str) -> None:
    """Warn of an image of a path the first time, too."""
    _log.warning("%s: left out, %s", name, reason)


@lru_cache(maxsize=256)
def _say_once(path: str, note: str) -> None:
    """Warn of a note the first time: the images of an evaluation are opened at each one of a run."""
    if is_first_process():
        _log.warning("data images: '%s': %s", path, note)
