"""Datasets, one file each. A dataset holds latents (pixels scaled to [-1, 1] if there is no VAE) and labels."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dit_shd.core.places import expanded
from dit_shd.core.plugins import PluginFolder
from dit_shd.core.rng import Draws
from dit_shd.data.latent_origin import Origin
from dit_shd.data.pipeline_record import PipelineRecord


class Dataset(ABC):
    """Latents x_0 [c,y,x], each with a class label, in a fixed order."""

    fields: frozenset[str] = frozenset({"latents", "labels"})
    """Names of the tensors that batch() returns; `images`: image() returns them one by one, as they are."""
    classes: int
    """Number of classes; labels are 0 to classes - 1."""
    class_names: tuple[str, ...] | None = None
    """Of each class, "" for a class without a name; None if classes have only numbers."""
    shape: tuple[int, int, int]
    """(c, y, x) of one latent."""
    shapes: Sequence[tuple[int, int, int]] = ()
    """Of all latents, where they are of several; `shape` is the most frequent one then."""
    notes: Sequence[str] = ()
    """Remarks on what was read and what was left out."""
    origin: Origin | None = None
    """The autoencoder of the latents; None for pixels, or if it is unknown (neither 1 nor 3 channels)."""

    record: PipelineRecord | None = None
    """The pipeline whose text encoders made the data's embeddings, if there are any."""

    @classmethod
    def described(cls, **options: Any) -> str:
        """Name and authors of the data in one line, for the cards of models; `options` are those of __init__."""
        return " ".join([cls.__module__.rpartition(".")[2], *(str(v) for k, v in options.items() if k == "path")])

    @property
    def sizes(self) -> dict[str, int]:
        """What of the data a model has to know, by the keyword of its family: how many classes, say."""
        return {"num_classes": self.classes} if "labels" in self.fields else {}

    @classmethod
    def sizes_of(cls, **options: Any) -> dict[str, int]:
        """The same of data that are not opened for training; nothing is written, and empty where they are not here.

        Args:
            options: Those of __init__, with their defaults.
        """
        if "labels" not in cls.fields:
            return {}
        if isinstance(getattr(cls, "classes", None), int):
            return {"num_classes": cls.classes}
        path = options.get("path")
        return cls(**options).sizes if path is not None and Path(expanded(path)).exists() else {}

    @abstractmethod
    def __len__(self) -> int: ...

    def indices(self, draws: Draws) -> np.ndarray:
        """Which samples a step has; an epoch visits each once.

        Args:
            draws: Of the step.
        """
        return draws.indices(len(self))

    def first(self, count: int) -> np.ndarray:
        """Which samples stand for all where there are to be so many.

        Args:
            count: At most the number of samples.
        """
        return np.arange(count)

    def of_one_shape(self, indices: np.ndarray) -> Sequence[np.ndarray]:
        """Samples in groups whose latents have one shape.

        Args:
            indices: Of the samples.
        """
        return [indices]

    @abstractmethod
    def batch(self, indices: np.ndarray, draws: Draws) -> dict[str, Tensor]:
        """The samples with these indices.

        Args:
            indices: Of the samples [b].
            draws: The source of anything random (flips, posterior noise).

        Returns:
            Tensors by the names in `fields`: latents [b,c,y,x] in float32, labels [b].
        """

    @abstractmethod
    def images(self) -> np.ndarray:
        """The images as uint8 [n,y,x,c], for evaluation.

        Raises:
            UserError: It is a dataset of latents.
        """

    def image(self, index: int) -> np.ndarray:
        """One image as it is, uint8 [y,x,c], of data that have `images` among their fields."""
        return self.images()[index]

    def measured(self, index: int) -> np.ndarray | None:
        """The same to be measured on: None in place of one that cannot be decoded, and no other one."""
        return self.image(index)

    @abstractmethod
    def labels(self) -> np.ndarray:
        """The labels, int64 [n]."""


class ImagesInMemory(Dataset):
    """Small images, as latents in [-1, 1] and as they are.

    Args:
        images: uint8 [n,y,x,c].
        labels: int64 [n].
    """

    fields = frozenset({"latents", "labels", "images"})

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        self._images, self._labels = images, labels
        y, x, c = images.shape[1:]
        self.shape = (c, y, x)

    def __len__(self) -> int:
        return len(self._labels)

    def batch(self, indices: np.ndarray, draws: Draws) -> dict[str, Tensor]:
        x_0 = torch.from_numpy(self._images[indices]).permute(0, 3, 1, 2).float() / 127.5 - 1
        return {"latents": x_0, "labels": torch.from_numpy(self._labels[indices])}

    def images(self) -> np.ndarray:
        return self._images

    def labels(self) -> np.ndarray:
        return self._labels


DATASETS = PluginFolder(__name__, Dataset, "data")
