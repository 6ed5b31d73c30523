"""A small attention module and a network of it, for tests that make it do unusual things."""

import torch
import torch.nn.functional as F
from torch import nn

from dit_shd import capture

E, H = 32, 4


class Attention(nn.Module):
    """Self-attention whose result goes through `after` before W^O."""

    def __init__(self, after=lambda o: o, heads=H):
        super().__init__()
        self.heads, self.after = heads, after
        self.qkv, self.proj = nn.Linear(E, 3 * E), nn.Linear(E, E)

    def heads_of(self, x):
        return self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)

    def forward(self, x, mask=None):
        made = self.after(F.scaled_dot_product_attention(*self.heads_of(x), attn_mask=mask))
        return self.proj(made.transpose(1, 2).flatten(2))


class Net(nn.Module):
    def __init__(self, depth=2, make=Attention, **options):
        super().__init__()
        self.blocks = nn.ModuleList(make(**options) for _ in range(depth))
        self.skip = ()

    def forward(self, x, **given):
        for i, block in enumerate(self.blocks):
            if i not in self.skip:
                x = x + block(x, **given)
        return x


def inputs(seed=0):
    return torch.randn(2, 6, E, generator=torch.Generator().manual_seed(seed))


def recorded(model, x, **given):
    with torch.no_grad(), capture(model) as captures:
        model(x, **given)
    return captures
