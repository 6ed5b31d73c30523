"""One encoding of images: what it is made of, its shards, and the settings that it is known by."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dit_shd.core.config import resolve
from dit_shd.data.encode_config import EncodeConfig
from dit_shd.data.encoder import Encoder
from dit_shd.data.latent_origin import Origin
from dit_shd.data.latent_shards import FORMAT, shard_file
from dit_shd.data.sources.base import ImageSource
from dit_shd.data.sources.splits import DEFAULT
from dit_shd.data.text_encoding import PromptEncoder

NEUTRAL = ("images", "out", "workers")
"""Keys that do not change the latents."""
OF_TEXT = ("pipeline", "caption_column", "text_tokens", "text_dtype", "adapter")
"""Keys of captions."""


@dataclass(frozen=True)
class EncodingJob:
    """One encoding, the same in every process."""

    config: EncodeConfig
    source: ImageSource
    encode: Encoder
    crop: tuple[int, int]
    """Height and width of the images."""
    shape: tuple[int, int, int]
    """(c, y, x) of a latent."""
    device: torch.device
    prompts: PromptEncoder | None = None

    @property
    def flips(self) -> int:
        """2 with mirrored images, else 1."""
        return 2 if self.config.flips else 1

    def pieces(self) -> list[range]:
        """The images' numbers, shard by shard, independent of the number of processes."""
        count, size = len(self.source), self.config.shard_size
        return [range(first, min(first + size, count)) for first in range(0, count, size)]

    def file(self, piece: range) -> Path:
        """The shard of the images with these numbers."""
        return shard_file(self.config.out, piece.start)

    def settings(self) -> dict[str, Any]:
        """Everything that changes the latents."""
        keys = {key: value for key, value in resolve(self.config).items() if key not in NEUTRAL}
        keys["split"] = keys["split"] or DEFAULT
        if self.prompts is None:
            keys = {key: value for key, value in keys.items() if key not in OF_TEXT}
        else:
            record = self.prompts.record
            keys |= {"vae": keys["pipeline"], "text_sha256": record.text_sha256, "text_tokens": record.text_tokens}
        if not keys.pop("buckets"):
            assert self.crop == (self.config.size, self.config.size)
        else:
            keys["crop"] = list(self.crop)
        about: dict[str, Any] = {"format": FORMAT, "images_sha256": self.source.sha256()}
        about["first_images_sha256"] = self.source.first_images_sha256()
        everything = self.source.all_images_sha256()
        if everything is not None:
            about["all_images_sha256"] = everything
        about["classes"] = list(self.source.classes)
        autoencoder = self.encode.autoencoder
        origin = Origin() if autoencoder is None else Origin.of_autoencoder(keys["vae"], autoencoder)
        return {**keys, **about, **origin.record()}
