"""From latents to pixels: an autoencoder of diffusers, nothing where latents are pixels, or latents kept."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dit_shd.core.errors import UserError
from dit_shd.data.autoencoder import Autoencoder, read_autoencoder
from dit_shd.data.pixels import to_uint8


class Decoder:
    """decode(latents [b,c,y,x]) -> pixels in [-1, 1], one image at a time, so that memory does not grow with b.

    Args:
        vae: an autoencoder of diffusers, or None where latents are pixels.
        keep: latents stay what they are.
        name: how the autoencoder is called.
    """

    def __init__(self, vae: Any = None, keep: bool = False, name: str | None = None):
        self.autoencoder = vae if vae is None or isinstance(vae, Autoencoder) else Autoencoder(vae)
        self.keep, self.name = keep, name

    @classmethod
    def load(cls, source: str | None, channels: int, device: torch.device) -> "Decoder":
        """By folder or hub:OWNER/NAME; None: latents are pixels.

        Args:
            channels: of the latents that will come.

        Raises:
            UserError: no such autoencoder, or one for other latents.
        """
        if source is None:
            return cls()
        return cls.of(read_autoencoder(source), source, channels, device)

    @classmethod
    def of(cls, autoencoder: Autoencoder, source: str, channels: int, device: torch.device) -> "Decoder":
        """By an autoencoder that was read from `source`.

        Raises:
            UserError: it is one for other latents, or of other things than images.
        """
        if autoencoder.channels != channels:
            raise UserError(f"vae: {source} decodes {autoencoder.channels} channels, the model has {channels}")
        _ = autoencoder.image
        autoencoder.vae.to(device)
        return cls(autoencoder, name=source)

    @property
    def vae(self) -> Any:
        """The network itself; None where there is none."""
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
    """What is written of what was decoded: images uint8 [b,y,x,c], or latents that are kept, float32 [b,c,y,x]."""
    if isinstance(decode, Decoder) and decode.keep:
        return decoded.cpu().numpy()
    return to_uint8(decoded, rounding)
