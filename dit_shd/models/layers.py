"""Layers of both MDT and DiT: embedders, adaLN, MLP, the final layer (arXiv 2212.09748)."""

import math
from functools import partial

import torch
from timm.layers import Mlp
from torch import Tensor, nn

from dit_shd.core.precision import dtype_of


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (1 + scale) + shift, the adaLN of DiT."""
    return torch.addcmul(shift, x, 1 + scale)


class FeedForward(Mlp):
    """timm's Mlp with DiT's tanh GELU [b,n,e] -> [b,n,e].

    Without a graph, on a CPU and in float32, oneDNN fuses bias and GELU into the products, as torch.compile does: about
    0.85 of the time, equal up to rounding.
    """

    def __init__(self, width: int, ratio: float):
        super().__init__(width, int(width * ratio), act_layer=partial(nn.GELU, approximate="tanh"))  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [b,n,e] from tokens."""
        if not (_has_onednn(x) and _is_plain(self.fc1) and _is_plain(self.fc2)):
            return super().forward(x)
        fused = torch.ops.mkldnn._linear_pointwise
        hidden = fused(x, self.fc1.weight, self.fc1.bias, "gelu", [], "tanh")
        return fused(hidden, self.fc2.weight, self.fc2.bias, "none", [], "")


def _has_onednn(x: Tensor) -> bool:
    plain = x.device.type == "cpu" and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    return (
        plain
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def _is_plain(linear: nn.Module) -> bool:
    """Whether a map is its weights alone: no adapter, and no hook, which may read it or make its weights (pruning)."""
    return type(linear) is nn.Linear and not (linear._forward_hooks or linear._forward_pre_hooks)


class FinalLayer(nn.Module):
    """From tokens [b,n,e] to patches [b,n,p*p*channels]."""

    def __init__(self, width: int, patch: int, channels: int):
        super().__init__()
        self.norm_final = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.linear = nn.Linear(width, patch * patch * channels)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Patches [b,n,p*p*c] of tokens [b,n,e] under the condition [b,e]."""
        shift, scale = self.adaLN_modulation(condition)[:, None].chunk(2, dim=-1)
        return self.linear(modulate(self.norm_final(x), shift, scale))


class TimestepEmbedder(nn.Module):
    """128 frequencies, cosines then sines, through an MLP."""

    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, timestep: Tensor) -> Tensor:
        """Embeddings [b,e] of timesteps [b]."""
        numbers = torch.arange(128, dtype=torch.float32, device=timestep.device)
        frequencies = torch.exp(-math.log(10000) * numbers / 128)
        angles = timestep[:, None].float() * frequencies
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1).to(dtype_of(self.mlp)))


class LabelEmbedder(nn.Module):
    """One row for each class and a last one for "no class"."""

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
