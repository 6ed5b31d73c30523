"""Latents of several heights and widths with embeddings of captions, as `dit-shd encode buckets=true` makes them."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from dit_shd.core.errors import UserError
from dit_shd.core.places import expanded
from dit_shd.core.rng import Draws
from dit_shd.data.buckets import bucket_folders
from dit_shd.data.datasets import Dataset
from dit_shd.data.datasets.text_latents import TextLatents
from dit_shd.data.latent_shards import BUCKETS
from dit_shd.data.pipeline_record import PipelineRecord
from dit_shd.data.text_condition import TextCondition


class TextBuckets(Dataset):
    """A folder of buckets. All samples of a step are of one, which is drawn by its share of the images.

    In it they are drawn with replacement.

    Args:
        path: The folder.
        flip: As in text_latents.
        verify: As in text_latents.
    """

    fields = TextLatents.fields

    def __init__(self, path: Path, flip: bool = False, verify: bool = False):
        path = Path(expanded(path))
        folders = bucket_folders(path)
        if folders is None:
            raise UserError(
                f"{path}: wanted buckets, found no {BUCKETS}; make them by: dit-shd encode buckets=true ..."
            )
        self._parts = [TextLatents(folder, flip, verify) for folder in folders]
        self._firsts = np.cumsum([0, *map(len, self._parts)])
        largest = max(self._parts, key=lambda part: (len(part), -abs(math.log(part.shape[1] / part.shape[2]))))
        self.shape, self.origin, self.classes = largest.shape, largest.origin, 1
        self.record = _of_all([part.record for part in self._parts], largest.record)
        self.shapes = [part.shape for part in self._parts]
        self.empty: TextCondition = largest.empty
        """No prompt [1,...]."""

    @classmethod
    def described(cls, **options: Any) -> str:
        return f"text_buckets {options.get('path')}"

    def __len__(self) -> int:
        return int(self._firsts[-1])

    def indices(self, draws: Draws) -> np.ndarray:
        bucket = self._bucket(int(draws.scalar("bucket") * len(self)))
        count = len(self._parts[bucket])
        return self._firsts[bucket] + (draws.uniform("sample of a bucket").numpy() * count).astype(int)

    def of_one_shape(self, indices: np.ndarray) -> Sequence[np.ndarray]:
        buckets = self._buckets(indices)
        return [indices[buckets == bucket] for bucket in np.unique(buckets)]

    def first(self, count: int) -> np.ndarray:
        """Evenly spaced ones: the first are of one bucket."""
        return np.arange(count) * len(self) // count

    def batch(self, indices: np.ndarray, draws: Draws) -> dict[str, Tensor]:
        """The same fields as of text_latents; the samples are of one bucket."""
        part, first = self._part(indices)
        return part.batch(indices - first, draws)

    def text(self, indices: np.ndarray) -> TextCondition:
        """The condition of samples of one bucket."""
        part, first = self._part(indices)
        return part.text(indices - first)

    def caption(self, index: int) -> str:
        """The caption of a sample."""
        part, first = self._part(np.array([index]))
        return part.caption(index - first)

    def captions(self) -> list[str]:
        """The captions of all samples, in order."""
        return [caption for part in self._parts for caption in part.captions()]

    def images(self) -> np.ndarray:
        raise UserError("text_buckets: holds latents, not images")

    def labels(self) -> np.ndarray:
        raise UserError("text_buckets: holds captions, not classes")

    def _buckets(self, indices: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._firsts, indices, side="right") - 1

    def _bucket(self, index: int) -> int:
        return int(self._buckets(np.array([index]))[0])

    def _part(self, indices: np.ndarray) -> tuple[TextLatents, int]:
        """The bucket of samples, and the number of its first."""
        bucket, *others = np.unique(self._buckets(indices)).tolist()
        if others:
            raise ValueError("samples of several buckets have latents of several shapes; see of_one_shape")
        return self._parts[bucket], int(self._firsts[bucket])


def _of_all(records: Sequence[PipelineRecord | None], largest: PipelineRecord | None) -> PipelineRecord | None:
    """The record of the largest bucket with the sizes of all."""
    sizes = tuple(record.size for record in records if record is not None and record.size is not None)
    return None if largest is None else replace(largest, sizes=sizes if len(sizes) > 1 else ())
