"""Latents with embeddings of captions, as `dit-shd encode images=... pipeline=...` makes them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dit_shd.core.errors import UserError
from dit_shd.core.places import expanded
from dit_shd.core.rng import Draws
from dit_shd.data import text_shards
from dit_shd.data.datasets import Dataset
from dit_shd.data.datasets.latents import Latents
from dit_shd.data.text_condition import TextCondition

if TYPE_CHECKING:
    from safetensors import safe_open


class TextLatents(Dataset):
    """A folder of shards of latents and of embeddings, both memory-mapped.

    Args:
        path: The folder.
        flip: Whether half of the samples are the mirrored image, which were encoded, too (flips=true).
        verify: Whether to read everything first and compare it with the checksums.
    """

    fields = frozenset({"latents", "text", "text_mask", "text_pooled"})

    def __init__(self, path: Path, flip: bool = False, verify: bool = False):
        path = Path(expanded(path))
        self._latents = Latents(path, flip, verify)
        if flip and not self._latents.mirrored:
            raise UserError(
                f"data.flip: {path} holds no mirrored images (captions may tell left from right); leave it out, or "
                "encode with flips=true"
            )
        text = text_shards.read_index(path)
        self.shape, self.origin, self.classes = self._latents.shape, self._latents.origin, 1
        self.record = text.record
        counts = [entry.count for entry in text.shards]
        if sum(counts) != len(self._latents):
            raise UserError(f"{path}: holds captions of {sum(counts)} images, and latents of {len(self._latents)}")
        self._firsts = np.cumsum([0, *counts])
        files = [text_shards.open_shard(path, entry) for entry in text.shards]
        if verify:
            for file in files:
                text_shards.verify(file)
        self._shards = [_open(file) for file in files]
        self._rows = [shard.get_tensor("rows") for shard in self._shards]
        self._conditions = [_mapped(shard) for shard in self._shards]
        self.empty: TextCondition = text_shards.read_condition(path / text_shards.FOLDER / text_shards.EMPTY)
        """No prompt [1,...]."""

    @classmethod
    def described(cls, **options: Any) -> str:
        return Latents.described(**options).replace("latents", "text_latents", 1)

    def __len__(self) -> int:
        return len(self._latents)

    def batch(self, indices: np.ndarray, draws: Draws) -> dict[str, Tensor]:
        """Samples of the posteriors [b,c,y,x], embeddings [b,m,e] and masks [b,m], pooled vectors [b,p] if any."""
        text = self.text(indices)
        tensors = {"latents": self._latents.batch(indices, draws)["latents"]}
        tensors |= {"text": text.embeddings, "text_mask": text.mask}
        return tensors if text.pooled is None else {**tensors, "text_pooled": text.pooled}

    def text(self, indices: np.ndarray) -> TextCondition:
        """The condition of samples, in float32, as long as the longest of their shards."""
        shards = np.searchsorted(self._firsts, indices, side="right") - 1
        order, parts = np.argsort(shards, kind="stable"), []
        for number in np.unique(shards):
            places = torch.from_numpy(indices[shards == number] - self._firsts[number])
            parts.append(self._conditions[number][self._rows[number][places]])
        tokens = max(part.tokens for part in parts)
        padded = [part.padded(tokens) for part in parts]
        pooled = [part.pooled for part in padded if part.pooled is not None]
        back = torch.from_numpy(np.argsort(order))
        return TextCondition(
            torch.cat([part.embeddings for part in padded]).float(),
            torch.cat([part.mask for part in padded]),
            torch.cat(pooled).float() if pooled else None,
        )[back]

    def caption(self, index: int) -> str:
        """The caption of a sample."""
        shard = int(np.searchsorted(self._firsts, index, side="right") - 1)
        captions = text_shards.captions_of(self._shards[shard].get_tensor("captions"))
        return captions[int(self._rows[shard][index - int(self._firsts[shard])])]

    def captions(self) -> list[str]:
        """The captions of all samples, in order."""
        captions: list[str] = []
        for shard, rows in zip(self._shards, self._rows):
            different = text_shards.captions_of(shard.get_tensor("captions"))
            captions += [different[int(row)] for row in rows]
        return captions

    def images(self) -> np.ndarray:
        raise UserError("text_latents: holds latents, not images")

    def labels(self) -> np.ndarray:
        raise UserError("text_latents: holds captions, not classes")


def _open(file: Path) -> "safe_open":
    from safetensors import safe_open

    return safe_open(file, "pt")


def _mapped(shard: "safe_open") -> TextCondition:
    """The embeddings of a shard's captions, read from the file when they are used."""
    pooled = shard.get_tensor("pooled") if "pooled" in shard.keys() else None  # noqa: SIM118
    return TextCondition(shard.get_tensor("embeddings"), shard.get_tensor("mask"), pooled)
