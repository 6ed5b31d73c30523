"""What MDT and DiT have in common: embedders, adaLN, the final layer (arXiv 2212.09748)."""

import math

import torch
from torch import Tensor, nn


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (1 + scale) + shift, the adaLN of DiT."""
    return torch.addcmul(shift, x, 1 + scale)


class FinalLayer(nn.Module):
    """From tokens [b,n,e] to patches [b,n,p*p*channels]."""

    def __init__(self, width: int, patch: int, channels: int):
        super().__init__()
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(width, patch * patch * channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(condition)[:, None].chunk(2, dim=-1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class TimestepEmbedder(nn.Module):
    """128 frequencies, cosines then sines, through an MLP."""

    def __init__(self, width: int, features: int = 256):
        super().__init__()
        self.features = features
        self.mlp = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, timestep: Tensor) -> Tensor:
        half = self.features // 2
        frequencies = torch.exp(
            -math.log(10000) * torch.arange(half, dtype=torch.float32, device=timestep.device) / half
        )
        angles = timestep[:, None].float() * frequencies
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1).to(next(self.mlp.parameters()).dtype))


class LabelEmbedder(nn.Module):
    """One row for each class and a last one for "no label"."""

    def __init__(self, classes: int, width: int):
        super().__init__()
        self.embedding_table = nn.Embedding(classes + 1, width)


def sincos_2d(width: int, window: int) -> Tensor:
    """Sine-cosine position embedding [1, w*w, e] (MAE): half for the column, half for the row, sines then cosines."""
    frequencies = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    angles = torch.arange(window, dtype=torch.float64)[:, None] * frequencies
    line = torch.cat([angles.sin(), angles.cos()], dim=1)  # [w, e/2]
    column, row = line[None, :].expand(window, -1, -1), line[:, None].expand(-1, window, -1)
    return torch.cat([column, row], dim=-1).reshape(1, window * window, width).float()
