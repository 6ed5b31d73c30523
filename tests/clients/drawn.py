"""Clients whose weights are drawn, and what is recorded of one."""

import torch
from torch import nn

from clients.layers import E, X
from dit_shd import capture


def drawn(model: nn.Module) -> nn.Module:
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=g) / E**0.5)
    return model.eval()


def recorded(model: nn.Module) -> dict:
    with torch.no_grad(), capture(model) as captures:
        model(*X()["args"])
    return dict(captures)
