"""The tokens of a module that is given something else before them."""

import pytest
import torch
import torch.nn.functional as F
from small_attention import Attention, E, H, inputs
from torch import nn

from dit_shd import SHD, capture
from dit_shd.attention.recording.tokens import features_of
from dit_shd.core.errors import UserError

pytestmark = pytest.mark.usefixtures("seeded")

X = torch.rand(2, 6, E)
BEFORE = [None, (3, 2), 7, torch.rand(6, 2), torch.rand(6, 6), torch.ones(6, 6).bool(), torch.rand(2), torch.rand(2, E)]


@pytest.mark.parametrize("first", BEFORE)
def test_features_are_found_behind_what_is_none(first):
    for given in ((first, X), (first, [X]), ({"x": X, "first": first},), (first, {"x": X}, torch.rand(2, 9, 4))):
        assert features_of(given) is X


@pytest.mark.parametrize(
    "more",
    [
        (),
        (torch.tensor([0, 6]),),
        ((torch.rand(1, 12, 8), torch.rand(1, 12, 8)),),
        (torch.rand(12, 2, 8),),
        (torch.rand(12, 4, 2, 2),),
    ],
)
def test_packed_tokens_are_features_before_their_rotations(more):
    packed = torch.rand(12, E)
    assert features_of((packed, *more)) is packed


class After(Attention):
    """A layer that is given something else first."""

    how = staticmethod(F.scaled_dot_product_attention)

    def forward(self, first, x):
        made = self.how(*self.heads_of(x))
        return self.proj(made.transpose(1, 2).flatten(2))


class Net(nn.Module):
    """Layers that are given the same first; by name: what they are given has names."""

    def __init__(self, first, by_name=False, how=F.scaled_dot_product_attention, heads=H):
        super().__init__()
        self.blocks, self.first, self.by_name = nn.ModuleList(After(heads=heads) for _ in range(2)), first, by_name
        for block in self.blocks:
            block.how = how

    def forward(self, x):
        for block in self.blocks:
            x = x + (block(first=self.first, x=x) if self.by_name else block(self.first, x))
        return x


def folded(q, k, v):
    return F.scaled_dot_product_attention(*(z.flatten(0, 1) for z in (q, k, v))).view_as(q)


def in_windows(q, k, v):
    return torch.cat([F.scaled_dot_product_attention(*some) for some in zip(*(z.split(3, 2) for z in (q, k, v)))], 2)


def block_diagonal(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, torch.block_diag(*[torch.ones(3, 3)] * 2).bool())


def second_half_first(q, k, v):
    first, last = zip(*(z.chunk(2) for z in (q, k, v)))
    made = F.scaled_dot_product_attention(*last)
    return torch.cat([F.scaled_dot_product_attention(*first), made])


def every_other(q, k, v):
    made = torch.empty_like(q)
    for i in range(2):
        made[i::2] = F.scaled_dot_product_attention(q[i::2], k[i::2], v[i::2])
    return made


def chunks_of_samples(q, k, v):
    """As attention that saves memory: some queries of one sample at a time."""
    samples = zip(*(z.split(1) for z in (q, k, v)))
    parts = [[F.scaled_dot_product_attention(some, k, v) for some in q.split(4, 2)] for q, k, v in samples]
    return torch.cat([torch.cat(rows, 2) for rows in parts])


@pytest.mark.parametrize("by_name", [False, True])
@pytest.mark.parametrize("first", BEFORE)
def test_heads_in_the_batch_are_refused_whatever_comes_first(first, by_name):
    """They had been samples of one head, and the loss a fraction of itself, where the tokens came second."""
    model, message = Net(first, by_name, folded), r"heads lie in the batch: .* found \[8, 6, 8\], .* 2 samples"
    with torch.no_grad(), capture(model), pytest.raises(UserError, match=message):
        model(inputs())


@pytest.mark.parametrize("first", [torch.rand(2, E), None])
def test_layers_of_one_head_that_share_what_comes_first_are_layers(first):
    with torch.no_grad(), capture(model := Net(first, heads=1)) as captures:
        model(inputs())
    assert {name: capture.shape for name, capture in captures.items()} == {f"blocks.{i}": (2, 1, 6, 6) for i in (0, 1)}


@pytest.mark.parametrize("how", [second_half_first, every_other, chunks_of_samples, in_windows])
@pytest.mark.parametrize("first", [torch.zeros(4), None, torch.rand(6, 2)])
def test_parts_are_one_layer_whatever_comes_first(first, how):
    """Each had been a layer, or samples had been glued to one sequence, or stood in another order."""
    x, losses = torch.randn(4, 6, E), []
    for teacher_how, student_how in ((how, how), (how, None), (None, how), (None, None)):
        torch.manual_seed(0)
        whole = block_diagonal if how is in_windows else F.scaled_dot_product_attention
        teacher, student = Net(first, how=teacher_how or whole), Net(first, how=student_how or whole, heads=2)
        with capture(teacher) as t, capture(student) as s:
            with torch.no_grad():
                teacher(x)
            student(x)
        assert t["blocks.0"].shape == (4, 4, 6, 6) and len(t) == 2
        losses.append(SHD()(t, s))
    for loss in losses:
        torch.testing.assert_close(loss, losses[-1])
