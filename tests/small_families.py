"""A tiny model with random weights of each family of ours."""

import torch

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


def same(a, b):
    """Whether two state dicts are equal to the bit."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
