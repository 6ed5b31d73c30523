"""What a product multiplies with, by its own result."""

import pytest
import torch
from clients.drawn import drawn, recorded
from clients.layers import E, Layer, X, merged, split
from clients.projections import ByHeadCast, Flat
from torch import nn
from torch.nn import functional as F


class Scaled(Layer):
    def forward(self, x):
        rows = merged(F.scaled_dot_product_attention(*split(self.qkv(x)))).flatten(0, 1)
        return torch.addmm(self.proj.bias, rows, self.proj.weight.t(), alpha=0.5).view(x.shape)


class Grouped(Layer):
    def __init__(self) -> None:
        super().__init__(project=lambda: nn.Conv1d(E, E, 1, groups=2))

    def forward(self, x):
        return self.proj(merged(F.scaled_dot_product_attention(*split(self.qkv(x)))).transpose(1, 2)).transpose(1, 2)


def test_parameters_in_one_storage_are_told_apart():
    """As optimisers and FSDP flatten them; x @ weight.T gives no parameter but a view of the storage."""
    model = drawn(Flat())
    for found, block in zip(recorded(model).values(), model.blocks, strict=True):
        torch.testing.assert_close(found.out.flatten(0, 1), block.proj.weight.t(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("layer", [ByHeadCast, Scaled, Grouped])
def test_what_a_product_really_multiplies_with(layer):
    """By the product's own result, in the first forward and in one that knows where it is."""
    model = drawn(layer())
    x = X()["args"][0]
    for _ in range(2):
        (found,) = recorded(model).values()
        assert found.out is not None, found.why_no_out
        with torch.no_grad():
            got = model(x) - (x if layer is ByHeadCast else 0)
        want = torch.einsum("bhnd,hde->bne", found.mixed, found.out.to(found.mixed.dtype))
        rest = (got - want).flatten(0, 1)
        torch.testing.assert_close(rest, rest[:1].expand_as(rest), rtol=0, atol=1e-5)  # a bias
