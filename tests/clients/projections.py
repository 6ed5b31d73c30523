"""Ways in which public code projects what attention gives: the weights and the product."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import D, E, H, Layer, elsewhere, split


class Flat(nn.Module):
    """The weights of all layers in one storage."""

    def __init__(self) -> None:
        super().__init__()
        flat = torch.zeros(2, E, E)
        self.blocks = nn.ModuleList(Layer(project=lambda: Matmul(E, E)) for _ in flat)
        for block, weight in zip(self.blocks, flat):
            block.proj.weight = nn.Parameter(weight)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class Matmul(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return input @ self.weight.T + self.bias


class Cast(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input.double(), self.weight.double(), self.bias.double()).to(input.dtype)


class Conv(nn.Conv1d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.transpose(1, 2)).transpose(1, 2)


class Einsum(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return torch.einsum("bnd,ed->bne", input, self.weight)


class ByHead(nn.Module):
    """W^O [h,d,e] as the layer's own parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(E, 3 * E), nn.Parameter(torch.randn(H, D, E) / E**0.5)

    def forward(self, x: Tensor) -> Tensor:
        a = F.scaled_dot_product_attention(*split(self.qkv(x)))
        return x + torch.einsum("bhnd,hde->bne", a, self.out)


class ByHeadCast(ByHead):
    """The weights come first, and are cast."""

    def forward(self, x: Tensor) -> Tensor:
        a = F.scaled_dot_product_attention(*split(self.qkv(x)))
        return x + torch.einsum("hde,bhnd->bne", self.out.double(), a.double()).to(x.dtype)


class Inline(nn.Module):
    """Projected in the attention's own forward, by a weight that is cast."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.w = nn.Linear(E, 3 * E), nn.Parameter(torch.randn(E, E) / E**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.linear(elsewhere(*split(self.qkv(x))).double(), self.w.double()).to(x.dtype)


class Adapted(nn.Module):
    """A projection and a low-rank one beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.a, self.b = nn.Linear(E, E), nn.Linear(E, 2, bias=False), nn.Linear(2, E, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.b(self.a(x))


def normed() -> nn.Module:
    return nn.utils.parametrizations.weight_norm(nn.Linear(E, E))
