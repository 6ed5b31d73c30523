"""What a small distiller is made of."""

import torch
from diffusers import PixArtTransformer2DModel
from small_steps import SMALL

from dit_shd.models.families.mdt import MDTv2
from dit_shd.tasks.diffusion import Diffusion

TASK = Diffusion()


def model(seed, heads, **changes):
    torch.manual_seed(seed)
    built = MDTv2(**{**SMALL, "num_attention_heads": heads, **changes})
    for p in built.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return built


def pixart(heads):
    return PixArtTransformer2DModel(
        in_channels=4, out_channels=8, num_layers=2, sample_size=8, patch_size=2, caption_channels=16,
        norm_num_groups=1, num_attention_heads=heads, attention_head_dim=8, cross_attention_dim=8 * heads,
    )  # fmt: skip
