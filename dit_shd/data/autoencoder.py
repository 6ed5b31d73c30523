"""The frozen autoencoder: images to latents and back."""

from typing import Any, Literal

import torch
from torch import Tensor

from dit_shd.core.errors import UserError
from dit_shd.core.hashing import sha256_of_tensors
from dit_shd.core.pretrained import autoencoder_folder, class_name, read_weights


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
        return None if self.vae is None else sha256_of_tensors(self.vae)

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

    try:
        folder = autoencoder_folder(source)
        name = class_name(folder)
        if name != "AutoencoderKL":
            raise UserError(f"'{source}' holds {name}, wanted AutoencoderKL")
        return read_weights(AutoencoderKL, folder)
    except UserError as error:
        raise UserError(f"vae: {error}; null: pixels are the latents") from error


class Encoder:
    """encode(pixels [b,3,y,x] in [-1, 1]) -> posterior [b,parts,c,y,x]: its mean and, where parts = 2, its deviation.

    Both are scaled as the diffusion model sees them, mean (mean - shift_factor) scaling_factor and deviation
    deviation scaling_factor, so that `Decoder`, which undoes that, is the inverse, and a dataset needs no factors.

    Args:
        vae: an AutoencoderKL, or None where pixels are the latents; their deviation is zero and parts is 1.
        precision: of the network; what comes out is float32.
    """

    def __init__(self, vae: Any = None, precision: Literal["no", "bf16"] = "no"):
        self.vae, self.precision = vae, precision
        self.parts = 1 if vae is None else 2
        if vae is not None:
            vae.eval().requires_grad_(False)

    @classmethod
    def load(cls, source: str | None, precision: Literal["no", "bf16"], device: torch.device) -> "Encoder":
        """By folder or hub:OWNER/NAME; None: pixels are the latents."""
        return cls(None if source is None else read_autoencoder(source).to(device), precision)

    @property
    def digest(self) -> str | None:
        """sha256 of the autoencoder's tensors, as the Decoder's."""
        return None if self.vae is None else sha256_of_tensors(self.vae)

    def shape(self, size: int) -> tuple[int, int, int]:
        """(c, y, x) of the latent of an image of size x size.

        Raises:
            UserError: the autoencoder takes no such images.
        """
        if self.vae is None:
            return 3, size, size
        own = self.vae.config
        factor = 2 ** (len(own.block_out_channels) - 1)
        if own.in_channels != 3 or size % factor:
            raise UserError(
                f"vae: takes images of {own.in_channels} channels and sizes that are multiples of {factor}, "
                f"wanted 3 channels and size {size}"
            )
        return own.latent_channels, size // factor, size // factor

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        if self.vae is None:
            return pixels[:, None]
        own = self.vae.config
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            posterior = self.vae.encode(pixels).latent_dist
        mean, deviation = posterior.mean.float(), posterior.std.float()
        scaled = (mean - (own.shift_factor or 0.0)) * own.scaling_factor
        return torch.stack([scaled, deviation * own.scaling_factor], dim=1)
