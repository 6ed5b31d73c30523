"""A small MDTv2 or DiT with random weights, whose sizes are said."""

import torch
from small_runs import STUDENT

from dit_shd.models.families import FAMILIES

SIZES = {k: v for k, v in STUDENT.items() if k != "name"}


def build(family="mdt", seed=0, **changes):
    options = {k: v for k, v in {**SIZES, **changes}.items() if family == "mdt" or k != "decode_layer"}
    torch.manual_seed(seed)
    model = FAMILIES.find(family)(**options)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model.eval()
