"""Pixels to latents: the posterior of an autoencoder of diffusers, or the pixels themselves."""

from typing import Literal

import torch
from torch import Tensor, nn

from dit_shd.core.errors import UserError
from dit_shd.data.autoencoder import Autoencoder, read_autoencoder


class Encoder:
    """Encodes pixels [b,3,y,x] in [-1, 1] to posteriors [b,parts,c,y,x]: mean and, if parts = 2, deviation.

    Both are scaled for the diffusion model (the mean is shifted, the deviation is not; see Scaling), so that `Decoder`
    is the inverse and a dataset needs no factors.

    Args:
        vae: An autoencoder of diffusers, or None if pixels are the latents. Without a posterior, parts is 1.
        precision: Autocast of the network; the output is float32.
    """

    def __init__(self, vae: Autoencoder | nn.Module | None = None, precision: Literal["no", "bf16"] = "no") -> None:
        autoencoder = vae if vae is None or isinstance(vae, Autoencoder) else Autoencoder(vae)
        self.autoencoder, self.precision = autoencoder, precision
        self.parts = 2 if autoencoder is not None and autoencoder.kind.posterior else 1

    @classmethod
    def load(cls, source: str | None, precision: Literal["no", "bf16"], device: torch.device) -> "Encoder":
        """The encoder of an autoencoder by its folder or hub:OWNER/NAME; None: pixels are the latents."""
        autoencoder = None if source is None else read_autoencoder(source)
        if autoencoder is not None:
            autoencoder.vae.to(device)
        return cls(autoencoder, precision)

    @property
    def digest(self) -> str | None:
        """sha256 of the autoencoder's tensors, the same as the Decoder's."""
        return None if self.autoencoder is None else self.autoencoder.digest

    @property
    def factor(self) -> int:
        """What heights and widths of images are multiples of."""
        return 1 if self.autoencoder is None else self.autoencoder.image[1]

    def shape(self, height: int, width: int | None = None) -> tuple[int, int, int]:
        """(c, y, x) of the latent of an image; of a square one where the width is left out.

        Raises:
            UserError: The autoencoder cannot encode such images.
        """
        width = height if width is None else width
        if self.autoencoder is None:
            return 3, height, width
        colours, factor = self.autoencoder.image
        if colours != 3 or height % factor or width % factor:
            raise UserError(
                f"vae: encodes images of {colours} channels and sizes that are multiples of {factor}, "
                f"wanted 3 channels and size {height if height == width else f'{height} x {width}'}"
            )
        return self.autoencoder.channels, height // factor, width // factor

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        if self.autoencoder is None:
            return pixels[:, None]
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            mean, deviation = self.autoencoder.encode(pixels)
        return torch.stack([mean] if deviation is None else [mean, deviation], dim=1)
