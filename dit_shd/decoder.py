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
        """By folder or hub name (safetensors only); None: latents are pixels.

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
    """diffusers' AutoencoderKL in a folder or by its name on the hub, from safetensors only.

    Raises:
        UserError: there is none, or its weights and its config do not belong together.
    """
    from diffusers import AutoencoderKL

    try:
        vae, told = AutoencoderKL.from_pretrained(  # type: ignore[misc]
            source, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # a stranger's folder can be wrong in any way
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"vae: '{source}' is neither a folder with an AutoencoderKL nor a reachable name ({reason}); null: pixels"
        ) from error
    wrong = [*told["missing_keys"], *told["unexpected_keys"], *told["mismatched_keys"]]
    if wrong:
        raise UserError(f"vae: the weights in '{source}' do not fit its config.json, {wrong[0]} first")
    return vae
