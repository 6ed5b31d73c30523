"""From pixels to latents: the posterior of an autoencoder of diffusers, or the pixels themselves."""

from typing import Any, Literal

import torch
from torch import Tensor

from dit_shd.core.errors import UserError
from dit_shd.data.autoencoder import Autoencoder, read_autoencoder


class Encoder:
    """encode(pixels [b,3,y,x] in [-1, 1]) -> posterior [b,parts,c,y,x]: its mean and, where parts = 2, its deviation.

    Both are scaled as the diffusion model sees them (the mean is shifted, the deviation is not; see Scaling), so that
    `Decoder`, which undoes that, is the inverse, and a dataset needs no factors.

    Args:
        vae: an autoencoder of diffusers, or None where pixels are the latents. Where there is no posterior, parts is 1.
        precision: of the network; what comes out is float32.
    """

    def __init__(self, vae: Any = None, precision: Literal["no", "bf16"] = "no"):
        own = vae if vae is None or isinstance(vae, Autoencoder) else Autoencoder(vae)
        self.autoencoder, self.precision = own, precision
        self.parts = 2 if own is not None and own.kind.posterior else 1

    @classmethod
    def load(cls, source: str | None, precision: Literal["no", "bf16"], device: torch.device) -> "Encoder":
        """By folder or hub:OWNER/NAME; None: pixels are the latents."""
        found = None if source is None else read_autoencoder(source)
        if found is not None:
            found.vae.to(device)
        return cls(found, precision)

    @property
    def digest(self) -> str | None:
        """sha256 of the autoencoder's tensors, as the Decoder's."""
        return None if self.autoencoder is None else self.autoencoder.digest

    def shape(self, size: int) -> tuple[int, int, int]:
        """(c, y, x) of the latent of an image of size x size.

        Raises:
            UserError: the autoencoder takes no such images.
        """
        if self.autoencoder is None:
            return 3, size, size
        colours, factor = self.autoencoder.image
        if colours != 3 or size % factor:
            raise UserError(
                f"vae: takes images of {colours} channels and sizes that are multiples of {factor}, "
                f"wanted 3 channels and size {size}"
            )
        return self.autoencoder.channels, size // factor, size // factor

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        if self.autoencoder is None:
            return pixels[:, None]
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            mean, deviation = self.autoencoder.encode(pixels)
        return torch.stack([mean] if deviation is None else [mean, deviation], dim=1)
