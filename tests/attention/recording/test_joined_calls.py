"""Layers whose attention is several calls: chunks of queries, packed images, windows."""

import pytest
import torch
import torch.nn.functional as F
from small_attention import Attention, E, H, Net, inputs, recorded
from torch import nn

from dit_shd import SHD, capture
from dit_shd.core.errors import UserError

pytestmark = pytest.mark.usefixtures("seeded")


class InChunks(Attention):
    """The same, some queries at a time, as one saves memory."""

    def __init__(self, rows=4, copied=False, heads=H):
        super().__init__(heads=heads)
        self.rows, self.copied = rows, copied

    def forward(self, x, mask=None):
        q, k, v = self.heads_of(x)
        parts = []
        for first in range(0, q.shape[2], self.rows):
            some = slice(first, first + self.rows)
            query = q[:, :, some].clone() if self.copied else q[:, :, some]
            parts.append(F.scaled_dot_product_attention(query, k, v, None if mask is None else mask[..., some, :]))
        return self.proj(torch.cat(parts, 2).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("rows", [2, 3, 4])
@pytest.mark.parametrize("masked", [False, True])
def test_queries_in_chunks_are_one_layer(rows, copied, masked):
    """Each chunk had been a layer of its own, and the loss as many times too large as there were chunks."""
    losses, gradients = [], []
    given = {"mask": torch.ones(6, 6).tril().bool()} if masked else {}
    for make, options in ((Attention, {}), (InChunks, {"rows": rows, "copied": copied})):
        torch.manual_seed(0)
        teacher, student = Net(make=make, **options), Net(make=make, heads=2, **options)
        with capture(teacher) as t, capture(student) as s:
            with torch.no_grad():
                teacher(inputs(), **given)
            student(inputs(), **given)
        assert list(s) == ["blocks.0", "blocks.1"] and s["blocks.0"].shape == (2, 2, 6, 6)
        losses.append(SHD()(t, s))
        gradients.append(torch.autograd.grad(losses[-1], student.blocks[0].qkv.weight)[0])
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*gradients)


def test_chunks_that_arrive_at_two_projections_are_not_given_the_first_ones():
    """As text's and image's rows that ask the same keys one after the other: each has its W^O, or it is asked for."""

    class TwoOuts(InChunks):
        def __init__(self, **options):
            super().__init__(**options)
            self.other = nn.Linear(E, E)

        def forward(self, x, mask=None):
            q, k, v = self.heads_of(x)
            first, last = (
                F.scaled_dot_product_attention(part, k, v).transpose(1, 2).flatten(2) for part in q.split(3, 2)
            )
            return torch.cat([self.proj(first), self.other(last)], 1)

    with pytest.raises(UserError, match="where the image stands among its 6 tokens is not known"):
        recorded(Net(make=TwoOuts), inputs())
    model = Net(depth=1, make=TwoOuts)
    with torch.no_grad(), capture(model, image=slice(3, None)) as captures:
        model(inputs())
    for name, projection in (("blocks.0:text", model.blocks[0].proj), ("blocks.0", model.blocks[0].other)):
        torch.testing.assert_close(captures[name].out.flatten(0, 1), projection.weight.T)


def in_blocks(lengths):
    return torch.block_diag(*(torch.ones(n, n) for n in lengths)).bool()


class Packed(Attention):
    """One sequence of several images, each of which attends to itself, by a call each (as Qwen2-VL's vision model)."""

    def __init__(self, lengths=(3, 3), apart=True, **options):
        super().__init__(**options)
        self.lengths, self.apart = list(lengths), apart

    def forward(self, x, mask=None):
        heads = self.heads_of(x)
        if self.apart:
            images = zip(*(z.split(self.lengths, 2) for z in heads))
            made = torch.cat([F.scaled_dot_product_attention(*image) for image in images], 2)
        else:
            made = F.scaled_dot_product_attention(*heads, attn_mask=in_blocks(self.lengths))
        return self.proj(made.transpose(1, 2).flatten(2))


class Prefixed(Attention):
    """Some first tokens see each other alone, the others see all: a call over a part of the keys, one over all."""

    def __init__(self, apart=True, causal=False, **options):
        super().__init__(**options)
        self.apart, self.causal = apart, causal

    def forward(self, x, mask=None):
        q, k, v = self.heads_of(x)
        seen = torch.ones(6, 6, dtype=torch.bool)
        seen[:2, 2:] = False
        seen[:2, :2] = seen[:2, :2].tril() if self.causal else True
        if self.apart:
            some = slice(0, 2)
            first = F.scaled_dot_product_attention(q[:, :, some], k[:, :, some], v[:, :, some], is_causal=self.causal)
            made = torch.cat([first, F.scaled_dot_product_attention(q[:, :, 2:], k, v)], 2)
        else:
            made = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return self.proj(made.transpose(1, 2).flatten(2))


class InWindows(Attention):
    """Two tokens at a time, each over the tokens before and after them, too: a call for each window."""

    def __init__(self, apart=True, **options):
        super().__init__(**options)
        self.apart = apart

    def forward(self, x, mask=None):
        q, k, v = self.heads_of(x)
        windows = [slice(0, 3), slice(1, 5), slice(3, 6)]
        if self.apart:
            parts = zip(q.split(2, 2), windows)
            made = [F.scaled_dot_product_attention(some, k[:, :, keys], v[:, :, keys]) for some, keys in parts]
            return self.proj(torch.cat(made, 2).transpose(1, 2).flatten(2))
        seen = torch.zeros(6, 6, dtype=torch.bool)
        for i, keys in enumerate(windows):
            seen[2 * i : 2 * i + 2, keys] = True
        return self.proj(F.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2).flatten(2))


@pytest.mark.parametrize(
    ("make", "options"),
    [(InWindows, {}), (Packed, {}), (Packed, {"lengths": (1, 3, 2)}), (Prefixed, {}), (Prefixed, {"causal": True})],
)
def test_calls_over_some_of_the_keys_each_are_one_layer(make, options):
    """Each call had been a layer of its own: the loss grew with the number of images in a batch."""
    losses, gradients = [], []
    for apart in (True, False):
        torch.manual_seed(0)
        teacher, student = (Net(make=make, heads=heads, apart=apart, **options) for heads in (H, 2))
        for _ in range(2):
            with capture(teacher) as t, capture(student) as s:
                with torch.no_grad():
                    teacher(inputs())
                student(inputs())
        assert list(s) == ["blocks.0", "blocks.1"] and s["blocks.0"].shape == (2, 2, 6, 6)
        losses.append(SHD()(t, s, row_weight=torch.arange(12.0).view(2, 6)))
        gradients.append(torch.autograd.grad(losses[-1], student.blocks[0].qkv.weight)[0])
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*gradients)


class OutOfOrder(Attention):
    """Query rows that are taken as they do not stand: over all keys, over their own (dilated), or by samples."""

    def __init__(self, taken="", copied=False, **options):
        super().__init__(**options)
        self.taken, self.copied = taken, copied

    def forward(self, x, mask=None):
        heads, rows = self.heads_of(x), torch.arange(6)
        own = "dilated" in self.taken
        parts = (
            [slice(4, 6), slice(2, 4), slice(0, 2)] if "reversed" in self.taken else [slice(i, 6, 2) for i in (1, 0)]
        )
        if not self.taken or self.taken == "plain dilated":
            seen = rows[:, None] % 2 == rows % 2 if own else None
            made = F.scaled_dot_product_attention(*heads, attn_mask=seen)
        elif self.taken == "samples":
            made = torch.empty_like(heads[0])
            for i in (1, 0):
                made[i : i + 1] = F.scaled_dot_product_attention(*(z[i : i + 1] for z in heads))
        else:
            made = torch.empty_like(heads[0])
            for part in parts:
                q, *others = (z[:, :, part] if own or i == 0 else z for i, z in enumerate(heads))
                q = q.clone() if self.copied else q
                made[:, :, part] = F.scaled_dot_product_attention(q, *others)
        return self.proj(made.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("backend", [None, "aot_eager"])
@pytest.mark.parametrize(
    ("taken", "copied"),
    [("reversed", False), ("strided", False), ("dilated", False), ("dilated", True), ("samples", False)],
)
def test_rows_that_come_out_of_order_stand_where_they_do_in_memory(taken, copied, backend):
    """They had stood as they came: the teacher's rows met other rows of the student, and other weights.

    Queries with memory of their own stand where their keys do, if those are theirs alone.
    """
    losses, gradients = [], []
    for how in ("plain dilated" if taken == "dilated" else "", taken):
        torch.manual_seed(0)
        teacher = Net(make=OutOfOrder, taken="plain dilated" if taken == "dilated" else "")
        student = Net(make=OutOfOrder, taken=how, copied=copied, heads=2)
        run = student if backend is None or not how else torch.compile(student, backend=backend)
        for _ in range(2):
            with capture(teacher) as t, capture(run) as s:
                with torch.no_grad():
                    teacher(inputs())
                run(inputs())
        assert list(s) == ["blocks.0", "blocks.1"] and s["blocks.0"].shape == (2, 2, 6, 6)
        assert s["blocks.0"].out is not None
        torch.testing.assert_close(s["blocks.0"].map() @ s["blocks.0"].value, s["blocks.0"].mixed)
        losses.append(SHD()(t, s, row_weight=torch.arange(12.0).view(2, 6)))
        gradients.append(torch.autograd.grad(losses[-1], student.blocks[0].qkv.weight)[0])
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*gradients)


def test_rows_out_of_order_have_the_projections_at_which_they_arrive():
    class TwoOuts(Attention):
        """The last tokens first, each side with a projection of its own."""

        def __init__(self, **options):
            super().__init__(**options)
            self.other = nn.Linear(E, E)

        def forward(self, x, mask=None):
            q, k, v = self.heads_of(x)
            last, first = (
                F.scaled_dot_product_attention(q[:, :, part], k, v).transpose(1, 2).flatten(2)
                for part in (slice(3, 6), slice(0, 3))
            )
            return torch.cat([self.proj(first), self.other(last)], 1)

    model = Net(depth=1, make=TwoOuts)
    with torch.no_grad(), capture(model, image=slice(3, None)) as captures:
        for _ in range(2):
            model(inputs())
    for name, projection in (("blocks.0:text", model.blocks[0].proj), ("blocks.0", model.blocks[0].other)):
        torch.testing.assert_close(captures[name].out.flatten(0, 1), projection.weight.T)


def test_rows_that_come_twice_are_refused():
    class Overlapping(Attention):
        def forward(self, x, mask=None):
            q, k, v = self.heads_of(x)
            parts = [F.scaled_dot_product_attention(q[:, :, part], k, v) for part in (slice(0, 4), slice(3, 5))]
            return self.proj(torch.cat(parts, 2).transpose(1, 2).flatten(2))

    with pytest.raises(UserError, match=r"its query rows come in 2 calls .* where they stand in it is not known"):
        recorded(Net(make=Overlapping), inputs())


def test_masks_of_calls_over_some_of_the_keys_are_kept_with_their_gradients():
    class Biased(Packed):
        def __init__(self, **options):
            super().__init__(**options)
            self.added = nn.Parameter(torch.randn(self.heads, 3, 3))

        def forward(self, x, mask=None):
            images = list(zip(*(z.split(3, 2) for z in self.heads_of(x))))
            parts = [F.scaled_dot_product_attention(*images[0], attn_mask=self.added)]
            parts.append(F.scaled_dot_product_attention(*images[1], attn_mask=torch.ones(3, 3).tril().bool()))
            return self.proj(torch.cat(parts, 2).transpose(1, 2).flatten(2))

    model = Net(depth=1, make=Biased)
    with capture(model) as captures:
        model(inputs())
    block, made = model.blocks[0], captures["blocks.0"].map()
    q, k, _ = (z.double() for z in block.heads_of(inputs()))
    scores = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5
    seen = in_blocks([3, 3])
    seen[3:, 3:] = seen[3:, 3:].tril()
    scores = (scores + F.pad(block.added, (0, 3, 0, 3)).double()).masked_fill(~seen, -torch.inf)
    torch.testing.assert_close(made, scores.softmax(-1).float())
    made.square().sum().backward()
    assert block.added.grad.abs().max() > 0
