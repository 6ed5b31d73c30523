"""Latents to pixels: by an autoencoder of diffusers, unchanged if latents are pixels, or kept as latents."""

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from dit_shd.core.errors import UserError
from dit_shd.data.autoencoder import Autoencoder, read_autoencoder
from dit_shd.data.pixels import to_uint8


class Decoder:
    """Decodes latents [b,c,y,x] to pixels in [-1, 1], one image at a time, so that memory does not grow with b.

    Args:
        vae: An autoencoder of diffusers, or None if latents are pixels.
        keep: Whether to keep latents.
        name: The autoencoder's name.
    """

    def __init__(self, vae: Autoencoder | nn.Module | None = None, keep: bool = False, name: str | None = None) -> None:
        self.autoencoder = vae if vae is None or isinstance(vae, Autoencoder) else Autoencoder(vae)
        self.keep, self.name = keep, name

    @classmethod
    def load(cls, source: str | None, channels: int, device: torch.device) -> "Decoder":
        """The decoder of an autoencoder by its folder or name.

        Args:
            source: A folder or hub:OWNER/NAME; None if latents are pixels.
            channels: Number of channels of the latents.
            device: Where it decodes.

        Raises:
            UserError: No such autoencoder, or one of other latents.
        """
        if source is None:
            return cls()
        return cls.of(read_autoencoder(source), source, channels, device)

    @classmethod
    def of(cls, autoencoder: Autoencoder, source: str, channels: int, device: torch.device) -> "Decoder":
        """The decoder of an autoencoder that was read from `source`.

        Raises:
            UserError: It is one of latents with other channels, or of other data than images.
        """
        if autoencoder.channels != channels:
            raise UserError(f"vae: {source} decodes {autoencoder.channels} channels, the model has {channels}")
        _ = autoencoder.image
        autoencoder.vae.to(device)
        return cls(autoencoder, name=source)

    @property
    def vae(self) -> nn.Module | None:
        """The network; None if there is none."""
        return None if self.autoencoder is None else self.autoencoder.vae

    @property
    def digest(self) -> str | None:
        """sha256 of the autoencoder's tensors."""
        return None if self.autoencoder is None else self.autoencoder.digest

    @torch.no_grad()
    def __call__(self, latents: Tensor) -> Tensor:
        return latents if self.autoencoder is None else self.autoencoder.decode(latents)


def finished(
    decode: Callable[[Tensor], Tensor], decoded: Tensor, rounding: Literal["floor", "nearest"] = "floor"
) -> np.ndarray:
    """The array to be written: images uint8 [b,y,x,c], or latents that are kept, float32 [b,c,y,x]."""
    if isinstance(decode, Decoder) and decode.keep:
        return decoded.cpu().numpy()
    return to_uint8(decoded, rounding)
