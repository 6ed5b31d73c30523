"""Heads among the rows: read where a module is given one token, refused where they share keys."""

import pytest
import torch
import torch.nn.functional as F
from small_attention import Attention, E, H
from torch import nn

from dit_shd import capture
from dit_shd.core.errors import UserError

SEQUENCE = (3, 9, E)


class Taking(nn.Module):
    """One layer, that is given all that the model is."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, *given):
        return self.layer(*given)


class InRows(nn.Module):
    """Heads that share keys, some or all, folded into the rows: nothing is copied."""

    def __init__(self, groups=2, three=False):
        super().__init__()
        self.groups, self.three = groups, three
        self.q, self.kv, self.proj = nn.Linear(E, E), nn.Linear(E, 2 * groups * E // H), nn.Linear(E, E)

    def forward(self, x):
        b, n, _ = x.shape
        q = self.q(x).unflatten(-1, (H, -1)).transpose(1, 2).reshape(b, self.groups, -1, E // H)
        k, v = self.kv(x).unflatten(-1, (2, self.groups, -1)).permute(2, 0, 3, 1, 4)
        made = F.scaled_dot_product_attention(*(z.squeeze(1) if self.three else z for z in (q, k, v)))
        return self.proj(made.reshape(b, H, n, -1).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("options", [{}, {"groups": 1}, {"groups": 1, "three": True}])
def test_heads_that_share_keys_among_the_rows_are_refused(options):
    """Two heads of 18 rows had been recorded for four of 9, and the loss was half as large without a word."""
    model = Taking(InRows(**options))
    with torch.no_grad(), capture(model), pytest.raises(UserError, match=r"lie among the rows: .* q as \[3,4,n,d\]"):
        model(torch.randn(SEQUENCE))


@pytest.mark.parametrize("mask", [None, torch.randn(10, 10), torch.randn(3, 1, 10, 10)])
def test_a_module_that_is_given_a_vector_first_has_its_queries_in_rows(mask):
    """The time's embedding, which is a token more in the attention; with a mask, the map ended in an IndexError."""

    class TimeFirst(Attention):
        def forward(self, time, x):
            return super().forward(torch.cat([time[:, None], x], 1), mask)

    layer = TimeFirst()
    model, time, x = Taking(layer), torch.randn(3, E), torch.randn(SEQUENCE)
    with torch.no_grad(), capture(model, layers=["layer"]) as captures:
        model(time, x)
    q, k, _ = layer.heads_of(torch.cat([time[:, None], x], 1))
    scores = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5 + (0 if mask is None else mask)
    torch.testing.assert_close(captures["layer"].map(), scores.softmax(3))


def test_heads_among_rows_keep_their_masks():
    """One token after cached ones, four heads that share the keys of two, each with a bias of its own."""

    class Step(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.proj = nn.Linear(16, 16), nn.Linear(16, 16)

        def forward(self, x, key, mask):
            query = self.q(x).view(3, 2, 2, 4)
            return self.proj(F.scaled_dot_product_attention(query, key, key, attn_mask=mask).flatten(1)[:, None])

    torch.manual_seed(0)
    model, x, key, mask = Taking(Step()), torch.randn(3, 1, 16), torch.randn(3, 2, 6, 4), torch.randn(3, 2, 2, 6)
    with torch.no_grad(), capture(model, layers=["layer"]) as captures:
        model(x, key, mask)
    scores = model.layer.q(x).view(3, 2, 2, 4) @ key.transpose(2, 3) / 2 + mask
    torch.testing.assert_close(captures["layer"].map(), scores.softmax(3).flatten(1, 2)[:, :, None])


def test_latents_that_are_more_than_the_tokens_are_rows():
    """Twice as many of half the width, as heads among the rows would be; theirs lie beside each other."""

    class Latents(nn.Module):
        def __init__(self):
            super().__init__()
            self.latents = nn.Parameter(torch.randn(1, 18, E))
            self.q, self.kv, self.proj = nn.Linear(E, E // 2), nn.Linear(E, E), nn.Linear(E // 2, E)

        def forward(self, x):
            q, k, v = torch.cat([self.q(self.latents).expand(len(x), -1, -1), *self.kv(x).chunk(2, -1)], 1).split(
                [18, 9, 9], 1
            )
            q, k, v = (z.unflatten(-1, (2, -1)).transpose(1, 2) for z in (q, k, v))
            return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    with torch.no_grad(), capture(model := Taking(Latents()), layers=["layer"]) as captures:
        model(torch.randn(SEQUENCE))
    assert captures["layer"].shape == (3, 2, 18, 9)
