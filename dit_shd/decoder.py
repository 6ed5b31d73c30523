"""From latents to pixels: diffusers' AutoencoderKL, or nothing where latents are pixels."""

from typing import Any

import torch
from torch import Tensor

from dit_shd.errors import UserError


class Decoder:
    """decode(latents [b,c,y,x]) -> pixels in [-1, 1], one image at a time, so that memory does not grow with b.

    Args:
        vae: an AutoencoderKL, or None where latents are pixels.
    """

    def __init__(self, vae: Any = None):
        self.vae = vae
        if vae is not None:
            vae.eval().enable_slicing()

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
        vae = read_autoencoder(source)
        if vae.config.latent_channels != channels:
            raise UserError(f"vae: {source} decodes {vae.config.latent_channels} channels, the model has {channels}")
        return cls(vae.to(device))

    @property
    def digest(self) -> str | None:
        """sha256 of the autoencoder's tensors."""
        from dit_shd.models import digest

        return None if self.vae is None else digest(self.vae)

    @torch.no_grad()
    def __call__(self, latents: Tensor) -> Tensor:
        if self.vae is None:
            return latents
        own = self.vae.config
        scaled = latents / own.scaling_factor + (own.shift_factor or 0.0)
        return self.vae.decode(scaled, return_dict=False)[0]


def read_autoencoder(source: str) -> Any:
    """diffusers' AutoencoderKL in a folder (or its `vae` folder, as a pipeline has it), or on the hub.

    Raises:
        UserError: there is none, or its weights and its config do not belong together.
    """
    from diffusers import AutoencoderKL

    from dit_shd.models._folder import autoencoder_folder, class_name, read_weights

    try:
        folder = autoencoder_folder(source)
        name = class_name(folder)
        if name != "AutoencoderKL":
            raise UserError(f"'{source}' holds {name}, wanted AutoencoderKL")
        return read_weights(AutoencoderKL, folder)
    except UserError as error:
        raise UserError(f"vae: {error}; null: pixels are the latents") from error
