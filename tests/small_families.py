"""A tiny model with random weights of each family of ours, and of diffusers' DiT; conversions of them."""

import torch
from diffusers import DiTTransformer2DModel

from dit_shd.core.config import make
from dit_shd.diffusion.sampled_run import words_of_run
from dit_shd.models.conversion import ConvertConfig, convert
from dit_shd.models.families.dit import DiT
from dit_shd.models.families.mdt import MDTv2

SMALL = dict(sample_size=8, in_channels=1, num_layers=4, num_attention_heads=2, attention_head_dim=4, num_classes=3)
FAMILIES = {"dit": (DiT, SMALL), "mdt": (MDTv2, {**SMALL, "decode_layer": 2})}


def build(name, seed=0):
    cls, options = FAMILIES[name]
    torch.manual_seed(seed)
    model = cls(**options)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    return model.eval()


def diffusers_dit(**options):
    torch.manual_seed(0)
    model = DiTTransformer2DModel(
        **{
            **dict(num_attention_heads=3, attention_head_dim=8, in_channels=1, out_channels=2, num_layers=2),
            **dict(sample_size=8, patch_size=2, num_embeds_ada_norm=3),
            **options,
        }
    )
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.15)
    for block in model.transformer_blocks[1:]:
        block.norm1.emb.load_state_dict(model.transformer_blocks[0].norm1.emb.state_dict())
    return model.eval()


def same(a, b):
    """Whether two state dicts are equal to the bit."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def to(source, out, **options):
    return convert(make(ConvertConfig, {"source": str(source), "out": str(out), **options}), words_of_run)
