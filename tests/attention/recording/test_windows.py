"""Windows in a dimension of their own, and which of two dimensions is the heads'."""

import pytest
import torch
import torch.nn.functional as F
from small_attention import Attention, E, Net, recorded

from dit_shd.core.errors import UserError

pytestmark = pytest.mark.usefixtures("seeded")


def images(b=4, n=6):
    return torch.randn(b, n, E, generator=torch.Generator().manual_seed(0))


class InWindows(Attention):
    """Windows of 3 tokens in a dimension of their own, before the heads or after them."""

    def __init__(self, heads_first=False, heads=4, size=3, short=False):
        super().__init__(heads=heads)
        self.heads_first, self.size, self.short = heads_first, size, short

    def forward(self, x, mask=None):
        windows = x.shape[1] // self.size
        of = [z.unflatten(2, (windows, self.size)) for z in self.heads_of(x)]  # [b,h,w,n,d]
        if not self.heads_first:
            of = [z.transpose(1, 2) for z in of]
        if mask is not None:  # [w,n,n]
            mask = mask if self.heads_first else mask[:, None]
            mask = mask if self.short else mask[(None,) * (5 - mask.ndim)]
        made = F.scaled_dot_product_attention(*of, attn_mask=mask)
        made = made if self.heads_first else made.transpose(1, 2)
        return self.proj(made.flatten(2, 3).transpose(1, 2).flatten(2))


class AsSamples(InWindows):
    """The same, with the windows in the batch."""

    def forward(self, x, mask=None):
        b, n, _ = x.shape
        of = [z.unflatten(2, (n // self.size, self.size)).transpose(1, 2).flatten(0, 1) for z in self.heads_of(x)]
        mask = mask if mask is None else mask.repeat(b, 1, 1)[:, None]
        made = F.scaled_dot_product_attention(*of, attn_mask=mask).unflatten(0, (b, n // self.size)).transpose(1, 2)
        return self.proj(made.flatten(2, 3).transpose(1, 2).flatten(2))


@pytest.mark.parametrize(("masked", "short"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("heads_first", [False, True])
def test_windows_in_a_dimension_of_their_own_are_samples(heads_first, masked, short):
    """As timm's Twins and Hiera have them; with a bias of each window, as shifted windows have."""
    given = {"mask": torch.randn(2, 3, 3)} if masked else {}
    model = Net(depth=1, make=InWindows, heads_first=heads_first, short=short)
    other = Net(depth=1, make=AsSamples)
    other.load_state_dict(model.state_dict())
    for _ in range(2):
        found, want = (recorded(each, images(), **given)["blocks.0"] for each in (model, other))
        assert found.shape == want.shape == (8, 4, 3, 3)
        torch.testing.assert_close(found.map(), want.map())
        torch.testing.assert_close(found.out, want.out)
        torch.testing.assert_close(found.out.flatten(0, 1), model.blocks[0].proj.weight.T)


class Halo(Attention):
    """Windows of 3 tokens that see the one before, too: their keys are twice as many as the module was given."""

    def __init__(self, heads_first, heads=4):
        super().__init__(heads=heads)
        self.heads_first = heads_first

    def forward(self, x, mask=None):
        q, k, v = (z.unflatten(2, (-1, 3)) for z in self.heads_of(x))  # [b,h,w,n,d]
        k, v = (torch.cat([z.roll(1, 2), z], 3) for z in (k, v))
        of = (q, k, v) if self.heads_first else [z.transpose(1, 2) for z in (q, k, v)]
        made = F.scaled_dot_product_attention(*of)
        made = made if self.heads_first else made.transpose(1, 2)
        return self.proj(made.flatten(2, 3).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("heads_first", [False, True])
@pytest.mark.parametrize("windows", [3, 8])
def test_windows_that_see_their_neighbours_are_samples(windows, heads_first):
    """With 8 of 4 heads, and with twice the keys, heads and windows had been exchanged without a word."""
    x, model = torch.randn(2, 3 * windows, E), Net(depth=1, make=Halo, heads_first=heads_first)
    found = recorded(model, x)["blocks.0"]
    q, k, _ = (z.unflatten(2, (-1, 3)).transpose(1, 2).flatten(0, 1) for z in model.blocks[0].heads_of(x))
    before = k.unflatten(0, (2, windows)).roll(1, 1).flatten(0, 1)
    want = (q @ torch.cat([before, k], 2).transpose(2, 3) * q.shape[-1] ** -0.5).softmax(3)
    torch.testing.assert_close(found.map(), want)
    torch.testing.assert_close(found.out.flatten(0, 1), model.blocks[0].proj.weight.T)


def test_as_many_windows_as_heads_do_not_tell_which_are_which():
    with pytest.raises(UserError, match=r"which dimension of the keys \[4, 2, 2, 3, 16\] is the heads' is not known"):
        recorded(Net(depth=1, make=InWindows, heads=2), images())
