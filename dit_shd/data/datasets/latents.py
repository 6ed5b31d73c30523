"""Latents of `dit-shd encode`: posterior noise and flips are drawn each time a sample is used."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dit_shd.core.errors import UserError
from dit_shd.core.places import expanded
from dit_shd.core.rng import Draws
from dit_shd.data.datasets import Dataset
from dit_shd.data.latent_origin import origin_of
from dit_shd.data.latent_shards import ShardEntry, damaged, mapped, open_tensors, read_header, read_index, verify_shard


class Latents(Dataset):
    """A folder of latent shards, memory-mapped; each sample is one contiguous read.

    Sizes and headers of all shards are checked at once, latents when they are used: they must be finite.

    Args:
        path: The folder.
        flip: Whether half of the samples are the mirrored image, if mirrored images were encoded.
        verify: Whether to read everything first and compare it with the checksums.
    """

    def __init__(self, path: Path, flip: bool = True, verify: bool = False):
        path = Path(expanded(path))
        self._set = read_index(path)
        self.shape, self.classes, self.class_names = self._set.shape, len(self._set.classes), self._set.classes
        self.origin = origin_of(self._set)
        self.mirrored = flip and self._set.flips == 2
        self._path = path
        self._files = [path / entry.file for entry in self._set.shards]
        self._firsts = np.cumsum([0, *(entry.count for entry in self._set.shards)])
        labels = [self._open(entry, verify) for entry in self._set.shards]
        self._labels = np.concatenate(labels)
        self._posteriors = [mapped(file, "posterior") for file in self._files]

    @classmethod
    def described(cls, **options: Any) -> str:
        dataset = super().described(**options)
        try:
            latents = read_index(Path(expanded(options["path"])))
            pixels = origin_of(latents) is None
        except UserError:  # it has been moved away since the training began
            return dataset
        kept = "kept as pixels" if pixels else f"encoded by {latents.about.get('vae')}"
        return f"{dataset}: {latents.about.get('images')} {kept}"

    def _open(self, entry: ShardEntry, verify: bool) -> np.ndarray:
        """The labels of a shard.

        Raises:
            UserError: It is not the shard that latents.json lists, or it is damaged.
        """
        file = self._path / entry.file
        header = verify_shard(file) if verify else read_header(file)
        in_file = (header.shape, header.dtype, header.sha256, file.stat().st_size)
        in_index = ((entry.count, *self._set.row), self._set.dtype, entry.sha256, entry.bytes)
        if in_file != in_index:
            raise damaged(file, f"{self._path.name}'s latents.json lists another")
        labels = open_tensors(file).get_tensor("label")
        if len(labels) and not 0 <= labels.min() <= labels.max() < self.classes:
            raise damaged(file, f"labels {labels.min()} to {labels.max()} of {self.classes} classes")
        return labels

    def __len__(self) -> int:
        return len(self._labels)

    def batch(self, indices: np.ndarray, draws: Draws) -> dict[str, Tensor]:
        """Samples of the posteriors [b,c,y,x] and labels [b].

        Raises:
            UserError: A latent is not finite.
        """
        rows = np.empty((len(indices), self._set.parts, *self.shape), np.float32)
        sides = np.zeros(len(indices), int)
        if self.mirrored:
            sides = (draws.uniform("flip") < 0.5).numpy().astype(int)
        shards = np.searchsorted(self._firsts, indices, side="right") - 1
        for row, shard, index, side in zip(rows, shards, indices - self._firsts[shards], sides):
            row[:] = self._posteriors[shard][index, side]
        x_0 = torch.from_numpy(rows[:, 0])
        if self._set.parts == 2:
            noise = draws.normal("posterior", self.shape)
            x_0 = x_0.addcmul(torch.from_numpy(rows[:, 1]), noise)
        finite = x_0.sum(dim=(1, 2, 3)).isfinite().numpy()
        if not finite.all():
            file = self._files[shards[~finite][0]]
            raise UserError(f"{file}: holds latents that are not finite (NaN or infinity); encode again, check the vae")
        return {"latents": x_0, "labels": torch.from_numpy(self._labels[indices])}

    def images(self) -> np.ndarray:
        raise UserError(f"{self._path}: holds latents, not images")

    def labels(self) -> np.ndarray:
        return self._labels
