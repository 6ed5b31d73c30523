"""What a product multiplies with, by its own result."""

import pytest
import torch
from clients.drawn import drawn, recorded
from clients.layers import E, Layer, X, merged, split
from clients.projections import ByHead, ByHeadCast, Flat
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


class Einsum(ByHead):
    """Its own parameters, or cast ones: what a product of each holds, and the einsum that takes the rows [b,h,n,d]."""

    def __init__(self, equation, cast):
        super().__init__()
        self.equation, self.cast = equation, cast

    def forward(self, x):
        a = F.scaled_dot_product_attention(*split(self.qkv(x)))
        weight = self.out.double() if self.cast else self.out
        return torch.einsum(self.equation, a.to(weight.dtype), weight).to(x.dtype)


@pytest.mark.parametrize("cast", [False, True])
@pytest.mark.parametrize("equation", ["bhnd,hde->bhne", "bhnd,hde->ben", "bhnd,hdf->bnhf", "bhnd,hdf->nbhf"])
def test_an_einsum_whose_result_is_no_rows_has_no_projection(equation, cast):
    """Of each head by itself, or of features before tokens: W^O had its numbers in another order without a word."""
    (found,) = recorded(drawn(Einsum(equation, cast))).values()
    assert found.out is None
    assert "which are no rows [...,e]" in found.why_no_out


@pytest.mark.parametrize("cast", [False, True])
@pytest.mark.parametrize("equation", ["bhnd,hde->bne", "bhnd,hde->nbe"])
def test_an_einsum_of_rows_has_one_whatever_comes_first(equation, cast):
    model = drawn(Einsum(equation, cast))
    (found,) = recorded(model).values()
    torch.testing.assert_close(found.out.float(), model.out.float())
