"""Small transformers of diffusers whose attention is recorded."""

import torch
from diffusers import DiTTransformer2DModel, SD3Transformer2DModel


def dit(heads: int, layers: int = 3) -> DiTTransformer2DModel:
    torch.manual_seed(heads)
    return DiTTransformer2DModel(
        num_attention_heads=heads, attention_head_dim=8, in_channels=4, num_layers=layers, sample_size=8,
        patch_size=2, num_embeds_ada_norm=10,
    ).eval()  # fmt: skip


def run(model):
    r = torch.Generator().manual_seed(0)
    x, t, y = torch.randn(2, 4, 8, 8, generator=r), torch.tensor([1, 900]), torch.tensor([1, 2])
    return model(x, timestep=t, class_labels=y, return_dict=False)[0]


def sd3(heads: int) -> SD3Transformer2DModel:
    """As SD3.5-medium, whose first blocks have a second attention, of the image alone."""
    torch.manual_seed(heads)
    return SD3Transformer2DModel(
        sample_size=8, in_channels=4, out_channels=4, num_layers=2, num_attention_heads=heads, attention_head_dim=8,
        caption_projection_dim=8 * heads, joint_attention_dim=16, pooled_projection_dim=16, pos_embed_max_size=8,
        dual_attention_layers=(0,),
    ).eval()  # fmt: skip
