"""PixArt-alpha (arXiv 2310.00426) and -Sigma (2403.04692): DDPM with a learned variance, cross-attention to T5."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dit_shd.data.text_condition import TextCondition
from dit_shd.diffusion.adapters import Adapter, settings_of

PIXELS = 8
"""Along the side of a latent, for the sizes that PixArt-alpha at 1024 pixels is given."""


class PixArt(Adapter):
    """Time is the timestep, the output noise and the share of the variance [b,2c,y,x]."""

    transformer = "PixArtTransformer2DModel"
    pipelines = ("PixArtSigmaPipeline", "PixArtAlphaPipeline")
    process = "ddpm"
    example_tokens = 300
    cleaners = ("bs4", "ftfy")
    attention = "self, and cross to text"
    cross_attention = ("*.attn2",)

    def text_widths(self, settings: Mapping[str, Any]) -> tuple[int, int | None]:
        return settings["caption_channels"], None

    def arguments(
        self, model: nn.Module, x: Tensor, time: Tensor, text: TextCondition, guidance: Tensor | None
    ) -> dict[str, Any]:
        return {
            "hidden_states": x,
            "timestep": time,
            "encoder_hidden_states": text.embeddings,
            "encoder_attention_mask": text.mask.to(x.dtype),
            "added_cond_kwargs": _sizes(model, x),
        }


def _sizes(model: nn.Module, x: Tensor) -> dict[str, Tensor | None]:
    """Height and width in pixels [b,2] and their ratio [b,1], for a model that is given them."""
    settings = settings_of(model)
    given = settings.get("use_additional_conditions")
    if not (settings.get("sample_size") == 128 if given is None else given):
        return {"resolution": None, "aspect_ratio": None}
    height, width = (PIXELS * side for side in x.shape[-2:])
    sizes = torch.tensor([[height, width]], dtype=x.dtype, device=x.device).expand(len(x), -1)
    return {"resolution": sizes, "aspect_ratio": sizes[:, :1] / sizes[:, 1:]}
