"""Heads in the batch, samples among the heads, frames for heads: refused; what looks like them and is not, recorded."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dit_shd import capture
from dit_shd.core.errors import UserError

E, H = 32, 4
SEQUENCE, VIDEO, IMAGE = (3, 9, E), (3, 5, 9, E), (3, E, 3, 3)


def plain(q, k, v):
    return F.scaled_dot_product_attention(q, k, v)


def in_three(q, k, v):
    return F.scaled_dot_product_attention(*(x.flatten(0, 1) for x in (q, k, v))).view_as(q)


def in_batch(q, k, v):
    return F.scaled_dot_product_attention(*(x.flatten(0, 1)[:, None] for x in (q, k, v))).view_as(q)


def among_heads(q, k, v):
    return F.scaled_dot_product_attention(*(x.flatten(0, 1)[None] for x in (q, k, v))).view_as(q)


def heads_first(q, k, v):
    return F.scaled_dot_product_attention(*(x.transpose(0, 1) for x in (q, k, v))).transpose(0, 1)


def one_by_one(q, k, v):
    return torch.cat([F.scaled_dot_product_attention(*sample) for sample in zip(*(x.split(1) for x in (q, k, v)))])


def two_by_two(q, k, v):
    return torch.cat([F.scaled_dot_product_attention(*some) for some in zip(*(x.split(2) for x in (q, k, v)))])


class Layer(nn.Module):
    """Of tokens [b,...,e], or of pixels [b,e,h,w]."""

    def __init__(self, how=plain, inner=E, heads=H, image=False):
        super().__init__()
        self.qkv, self.proj = nn.Linear(E, 3 * inner), nn.Linear(inner, E)
        self.how, self.heads, self.image = how, heads, image

    def forward(self, x):
        rows = x.flatten(2).transpose(1, 2) if self.image else x
        q, k, v = (each.unflatten(-1, (self.heads, -1)).transpose(1, -2) for each in self.qkv(rows).chunk(3, -1))
        made = self.proj(self.how(q, k, v).transpose(1, -2).flatten(-2))
        return x + (made.transpose(1, 2).view_as(x) if self.image else made)


class OneHead(Layer):
    """Its frames, or windows of its tokens, where heads are."""

    def __init__(self, windows=None, folded=False, inner=E):
        super().__init__(inner=inner, heads=1)
        self.windows, self.folded = windows, folded

    def forward(self, x):
        parts = self.qkv(x).chunk(3, -1)
        if self.windows is not None:
            parts = [each.unflatten(1, (self.windows, -1)) for each in parts]
        if self.folded:
            parts = [each.flatten(0, 1)[:, None] for each in parts]
        return x + self.proj(F.scaled_dot_product_attention(*parts).reshape(*x.shape[:-1], -1))


class Folded(nn.Module):
    """Windows of 3 tokens in the batch, of several heads."""

    def __init__(self, how=plain):
        super().__init__()
        self.layer, self.how = Layer(), how

    def forward(self, x):
        q, k, v = (each.unflatten(1, (3, 3)).flatten(0, 1) for each in self.layer.qkv(x).chunk(3, -1))
        made = self.how(*(each.unflatten(-1, (H, -1)).transpose(1, 2) for each in (q, k, v)))
        return x + self.layer.proj(made.transpose(1, 2).flatten(2).view_as(x))


class Core(nn.Module):
    """Attention proper, which is given q, k and v; shared: one head of keys and values, without its dimension."""

    def __init__(self, shared=False, folded=False):
        super().__init__()
        self.shared, self.folded = shared, folded

    def forward(self, q, k, v):
        if self.folded:
            q, k, v = (x.unflatten(0, (-1, H)) for x in (q, k, v))
        if self.shared:
            k, v = (x[:, None].expand_as(q) for x in (k, v))
        made = F.scaled_dot_product_attention(q.contiguous(), k.contiguous(), v.contiguous())
        return made.flatten(0, 1) if self.folded else made


class Cored(Layer):
    def __init__(self, **options):
        super().__init__()
        self.core = Core(**options)
        self.how = self.attend

    def attend(self, q, k, v):
        if self.core.folded:
            return self.core(*(x.flatten(0, 1) for x in (q, k, v))).view_as(q)
        return self.core(q, k[:, 0], v[:, 0]) if self.core.shared else self.core(q, k, v)


HEADS, SAMPLES, FRAMES = "heads lie in the batch", "samples lie among the heads", "frames or windows lie where"


@pytest.mark.parametrize(
    ("make", "shape", "message"),
    [
        (lambda: Layer(in_three, image=True), IMAGE, rf"{HEADS}: .* found \[12, 9, 8\], .* 3 samples; .*\[3,4,n,d\]"),
        (lambda: Layer(in_three, 64, image=True), IMAGE, rf"{HEADS}: .* found \[12, 9, 16\]"),
        (lambda: Layer(in_three, 64, image=True), (1, *IMAGE[1:]), rf"{HEADS}: .* found \[4, 9, 16\]"),
        (lambda: Layer(in_three, 64), SEQUENCE, rf"{HEADS}: .* found \[12, 9, 16\]"),
        (lambda: Folded(in_three), SEQUENCE, rf"{HEADS}: .* found \[36, 3, 8\]"),
        (lambda: Layer(in_batch), SEQUENCE, rf"{HEADS}: .* found \[12, 1, 9, 8\], .* 3 samples; .*\[3,4,n,d\]"),
        (lambda: Layer(in_batch, 64, image=True), IMAGE, rf"{HEADS}: .* found \[12, 1, 9, 16\]"),
        (lambda: Folded(in_batch), SEQUENCE, rf"{HEADS}: .* found \[36, 1, 3, 8\]"),
        (lambda: Layer(among_heads, heads=1), SEQUENCE, rf"{SAMPLES}: .* found \[1, 3, 9, 32\], .*\[3,1,n,d\]"),
        (lambda: Layer(heads_first), SEQUENCE, rf"{HEADS}: .* found \[4, 3, 9, 8\], .* 3 samples; .*\[3,4,n,d\]"),
        (lambda: Layer(heads_first, 64), (5, 9, E), rf"{HEADS}: .* found \[4, 5, 9, 16\]"),
        (lambda: Layer(among_heads), SEQUENCE, rf"{SAMPLES}: .* found \[1, 12, 9, 8\], .* 3 samples; .*\[3,4,n,d\]"),
        (lambda: Layer(among_heads, 64, image=True), IMAGE, rf"{SAMPLES}: .* found \[1, 12, 9, 16\]"),
        (OneHead, VIDEO, rf"{FRAMES} the heads belong: .* found \[3, 5, 9, 32\], .*; .*\[15,1,n,d\]"),
        (lambda: OneHead(inner=8), VIDEO, rf"{FRAMES} the heads belong: .* found \[3, 5, 9, 8\]"),
        (lambda: OneHead(windows=3), SEQUENCE, rf"{FRAMES} the heads belong: .* found \[3, 3, 3, 32\]"),
    ],
)
@torch.no_grad()
def test_dimensions_that_are_not_those_of_heads_are_refused(make, shape, message):
    """They had been recorded as other attention, and a loss over them was another one, without a word."""
    torch.manual_seed(0)
    with pytest.raises(UserError, match=message), capture(nn.Sequential(make(), make())) as captures:
        captures.model(torch.randn(shape))


@pytest.mark.parametrize(
    ("make", "shape", "want"),
    [
        (Layer, SEQUENCE, (3, 4, 9, 9)),
        (lambda: Layer(inner=64), SEQUENCE, (3, 4, 9, 9)),
        (lambda: Layer(inner=64, image=True), IMAGE, (3, 4, 9, 9)),
        (lambda: Layer(heads=1, image=True), IMAGE, (3, 1, 9, 9)),
        (lambda: Layer(in_three, heads=1, inner=16), SEQUENCE, (3, 1, 9, 9)),
        (lambda: Layer(in_batch, heads=1, image=True), IMAGE, (3, 1, 9, 9)),
        (lambda: Layer(one_by_one), (4, 9, E), (4, 4, 9, 9)),
        (lambda: Layer(one_by_one, heads=8), (4, 9, E), (4, 8, 9, 9)),
        (lambda: Layer(two_by_two, inner=64), (4, 9, E), (4, 4, 9, 9)),
        (Folded, SEQUENCE, (9, 4, 3, 3)),
        (Cored, SEQUENCE, (3, 4, 9, 9)),
        (lambda: Cored(shared=True), SEQUENCE, (3, 4, 9, 9)),
        (lambda: Cored(folded=True), SEQUENCE, (3, 4, 9, 9)),
        (lambda: Cored(folded=True), (1, *SEQUENCE[1:]), (1, 4, 9, 9)),
        (lambda: OneHead(folded=True), VIDEO, (15, 1, 9, 9)),
        (lambda: OneHead(windows=3, folded=True), SEQUENCE, (9, 1, 3, 3)),
    ],
)
@torch.no_grad()
def test_what_looks_like_them_and_is_not_is_recorded(make, shape, want):
    torch.manual_seed(0)
    with capture(nn.Sequential(make(), make())) as captures:
        for _ in range(2):
            captures.model(torch.randn(shape))
            assert [each.shape for each in captures.values()] == [want] * 2


def test_heads_that_share_keys_are_heads_where_a_text_is_continued():
    """transformers makes rows of them for one token that has a mask; against the maps of its eager attention."""
    transformers = pytest.importorskip("transformers")
    sizes = dict(vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**sizes, num_key_value_heads=2, pad_token_id=0)
    ).eval()
    tokens, mask = torch.randint(1, 50, (2, 6)), torch.ones(2, 6, dtype=torch.long)
    mask[0, :2] = 0
    with torch.no_grad(), capture(model) as captures:
        longer = model.generate(tokens, attention_mask=mask, max_new_tokens=4, do_sample=False)
    model.set_attn_implementation("eager")
    mask = torch.cat([mask, torch.ones(2, 3, dtype=torch.long)], 1)
    with torch.no_grad():
        maps = model(longer[:, :9], attention_mask=mask, output_attentions=True).attentions
    assert len(captures) == len(maps) == 2
    for layer, want in zip(captures.values(), maps):
        torch.testing.assert_close(layer.map(), want[:, :, -1:])


def test_a_token_beside_a_sequence_makes_no_heads_of_its_rows():
    """As a block has that is given a condition first: block(condition, x, mask)."""

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)

        def forward(self, condition, x, mask):
            q, k, v = self.qkv(x + condition).unflatten(-1, (3, 4, 4)).permute(2, 0, 3, 1, 4)
            return self.proj(F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = Block()

        def forward(self, condition, x, mask):
            return self.block(condition, x, mask)

    with torch.no_grad(), capture(model := Net()) as captures:
        model(torch.randn(3, 1, 16), torch.randn(3, 6, 16), torch.ones(6, 6, dtype=torch.bool).tril())
    assert captures["block"].shape == (3, 4, 6, 6)


class Head(nn.Module):
    """One head, as tutorials have it, of tokens [b,n,e]; or a layer of one head."""

    def __init__(self, width=8):
        super().__init__()
        self.qkv = nn.Linear(E, 3 * width)

    def forward(self, x):
        return F.scaled_dot_product_attention(*self.qkv(x).chunk(3, -1))


class ModulePerHead(nn.Module):
    def __init__(self, heads=4):
        super().__init__()
        self.heads, self.proj = nn.ModuleList(Head(E // heads) for _ in range(heads)), nn.Linear(E, E)

    def forward(self, x):
        return x + self.proj(torch.cat([head(x) for head in self.heads], -1))


@pytest.mark.parametrize("made", [1, 2])
def test_heads_that_are_modules_of_their_own_are_no_layers(made):
    """Each had been taken for one: a student's head had copied one of the teacher's, and the others were dropped."""
    model = nn.Sequential(ModulePerHead(), ModulePerHead()).eval()
    said = r"0\.heads\.0 \.\.\. 0\.heads\.3 are 4 modules of one head each .*: layers=\['\*\.heads\.\*'\]"
    for _ in range(made):
        with torch.no_grad(), capture(model), pytest.raises(UserError, match=said):
            model(torch.randn(SEQUENCE))
    with torch.no_grad(), capture(model, layers=["*.heads.*"]) as captures:
        model(torch.randn(SEQUENCE))
    assert len(captures) == 8 and {each.heads for each in captures.values()} == {1}


def test_layers_of_one_head_one_after_the_other_are_layers():
    model = nn.Sequential(*(nn.Sequential(Head(E), nn.Linear(E, E)) for _ in range(3)), Head(E), Head(E)).eval()
    with torch.no_grad(), capture(model) as captures:
        model(torch.randn(SEQUENCE))
    assert list(captures) == ["0.0", "1.0", "2.0", "3", "4"]
    assert len(recorded_layers(nn.Sequential(ModulePerHead(1), ModulePerHead(1)))) == 2


def recorded_layers(model):
    with torch.no_grad(), capture(model) as captures:
        model(torch.randn(SEQUENCE))
    return captures
