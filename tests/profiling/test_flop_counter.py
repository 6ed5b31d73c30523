"""Operations of convolutions, by hand: multiply-adds of each output's place, channel and weight."""

import pytest
import torch
from torch import nn

from dit_shd.profiling.flop_counter import flop_counter


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("wanted", ["both", "weight", "input"])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_backward_takes_a_forward_for_each_gradient(groups, transposed, wanted, device):
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    layer = kind(8, 16, (3, 2), stride=2, padding=1, groups=groups, device=device)
    layer.requires_grad_(wanted != "input")
    x = torch.zeros(3, 8, 6, 10, device=device, requires_grad=wanted != "weight")
    with flop_counter() as forward:
        y = layer(x)
    places = x.shape[2:].numel() if transposed else y.shape[2:].numel()  # each meets every weight of its group
    by_hand = 2 * 3 * places * layer.weight.numel()
    assert forward.get_total_flops() == by_hand
    with flop_counter() as backward:
        y.sum().backward()
    assert backward.get_total_flops() == by_hand * (2 if wanted == "both" else 1)
