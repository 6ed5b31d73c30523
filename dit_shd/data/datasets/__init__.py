"""Datasets, one file each. A dataset holds latents (pixels scaled to [-1, 1] where there is no VAE) and labels."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from dit_shd.core.plugins import PluginFolder
from dit_shd.core.rng import Draws
from dit_shd.data.latent_origin import Origin


class Dataset(ABC):
    """Latents x_0[c,y,x] with a class label each, in a fixed order."""

    fields: ClassVar[frozenset[str]] = frozenset({"latents", "labels"})
    """What batch() gives."""
    classes: int
    """Number of classes; label `classes` means no label."""
    class_names: tuple[str, ...] | None = None
    """Of each class; None: they have none but their numbers, "": this one has none."""
    shape: tuple[int, int, int]
    """(c, y, x) of one latent."""
    origin: Origin | None = None
    """Of which autoencoder the latents are; None: they are pixels (or unknown, where they have not 1 or 3 channels)."""

    @classmethod
    def described(cls, **options: Any) -> str:
        """What the data are and whose, in a line for the cards of models trained on them; `options` are __init__'s."""
        return " ".join([cls.__module__.rpartition(".")[2], *(str(v) for k, v in options.items() if k == "path")])

    @property
    def sizes(self) -> dict[str, int]:
        """What of the data a model has to know, by the keyword of its family: how many classes, say."""
        return {"num_classes": self.classes}

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def batch(self, indices: np.ndarray, draws: Draws) -> dict[str, Tensor]:
        """The samples of some indices, by the names in `fields`: latents[b,c,y,x] in float32, labels[b].

        Anything random (flips, posterior noise) comes from `draws`.
        """

    @abstractmethod
    def images(self) -> np.ndarray:
        """The images as uint8 [n,y,x,c], for evaluation; a dataset of latents raises UserError."""

    @abstractmethod
    def labels(self) -> np.ndarray:
        """int64 [n]"""


DATASETS = PluginFolder(__name__, Dataset, "data")
