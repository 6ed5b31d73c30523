"""nn.MultiheadAttention, whose call of attention is hidden in another function; masks that are no plain numbers."""

import copy

import pytest
import torch
from packaging.version import Version
from torch import nn
from torch.nn import functional as F
from torch.nn.attention.bias import causal_lower_right, causal_upper_left
from torch.overrides import TorchFunctionMode

from dit_shd import capture
from dit_shd.core.errors import UserError


class Special(torch.Tensor):
    """Whose functions are its own."""


PADDING = torch.arange(5) >= torch.tensor([[5], [3]])


@pytest.mark.parametrize(
    ("training", "grad", "padding"),
    [
        (True, True, PADDING),
        (False, False, None),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in ((True, True, None), (False, True, None), (False, True, PADDING), (False, False, PADDING))
        ),
    ],
)
def test_a_compiled_model_of_it_is_recorded_as_the_plain_one_is(training, grad, padding):
    if Version(torch.__version__).release < (2, 10) and not (training or grad) and padding is None:
        pytest.skip("torch 2.9 takes the fast path, and the layer is refused")
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    model = nn.TransformerEncoder(layer, 2, mask_check=False).train(training)
    compiled, x = torch.compile(model, backend="eager"), torch.randn(2, 5, 16)
    with capture(model) as captures, torch.set_grad_enabled(grad):
        model(x, src_key_padding_mask=padding)
        want = dict(captures)
    for _ in range(3):  # the first is surveyed, and so not compiled
        with capture(compiled) as captures, torch.set_grad_enabled(grad):
            compiled(x, src_key_padding_mask=padding)
            assert captures.keys() == want.keys()
            for name, layer in captures.items():
                torch.testing.assert_close(layer.query, want[name].query)
                torch.testing.assert_close(layer.value, want[name].value)
        compiled(x)


def takes_fast_path(model, x):
    """By what it gives for tokens of padding."""
    with torch.no_grad():
        return not model(x, src_key_padding_mask=PADDING)[PADDING].any()


@pytest.mark.parametrize("first", [0, 1])
def test_only_what_is_recorded_leaves_the_fast_path_and_only_while_it_is(first):
    layer, x = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), torch.randn(2, 5, 16)
    model, other = (nn.TransformerEncoder(layer, 2).eval() for _ in range(2))
    before = {key: value for key, value in vars(model.layers[0]).items() if not key.startswith("_")}
    contexts = [capture(model), capture(model)]
    for context in contexts:
        context.__enter__()
    assert not takes_fast_path(model, x) and not takes_fast_path(model, x) and takes_fast_path(other, x)
    with pytest.raises(AssertionError):
        model(x[..., 1:])
    assert takes_fast_path(copy.deepcopy(model), x)
    contexts.pop(first).__exit__(None, None, None)
    assert not takes_fast_path(model, x)
    contexts.pop().__exit__(None, None, None)
    assert takes_fast_path(model, x)
    after = {key: value for key, value in vars(model.layers[0]).items() if not key.startswith("_")}
    assert after == before and type(model) is nn.TransformerEncoder


def test_what_stands_for_attention_of_pytorch_stands_for_it_in_a_recorded_forward_too(monkeypatch):
    """As an attention kernel that is put in its place does; here, one that doubles."""
    model, x, attention = nn.MultiheadAttention(8, 2), torch.randn(3, 2, 8), F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *args, **how: 2 * attention(*args, **how))
    want = model(x, x, x, need_weights=False)[0]
    with capture(model):
        first, second = (model(x, x, x, need_weights=False)[0] for _ in range(2))
    assert torch.equal(first, want) and torch.equal(second, want)


class Looks(TorchFunctionMode):
    """Of somebody else: whether F knows a special tensor when it projects."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.linear:
            self.seen.append(F.has_torch_function((torch.ones(1).as_subclass(Special),)))
        return func(*args, **(kwargs or {}))


def test_nothing_of_pytorch_is_changed_while_it_is_recorded():
    model, x = nn.MultiheadAttention(8, 2), torch.randn(3, 2, 8)
    with capture(model) as captures, Looks() as looks:
        model(x, x, x)
        model(x, x, x)
    assert len(captures) == 1 and looks.seen and all(looks.seen)


class Masked(nn.Module):
    """Of two heads; the mask is made as the model runs."""

    def __init__(self, mask, keys=slice(None)):
        super().__init__()
        self.qkv, self.proj, self.mask, self.keys = nn.Linear(8, 24), nn.Linear(8, 8), mask, keys

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q[:, :, self.keys], k, v, attn_mask=self.mask())
        return self.proj(mixed.transpose(1, 2).flatten(2))


@pytest.mark.parametrize(
    ("mask", "queries", "diagonal"),
    [
        (lambda: causal_upper_left(5, 5), slice(None), 0),
        (lambda: causal_lower_right(5, 5), slice(None), 0),
        (lambda: causal_upper_left(3, 5), slice(2, None), 0),
        (lambda: causal_lower_right(3, 5), slice(2, None), 2),
        (lambda: nn.Parameter(torch.zeros(5, 5).masked_fill(torch.ones(5, 5).triu(1) > 0, -torch.inf)), slice(None), 0),
    ],
)
@pytest.mark.parametrize("backend", [None, "eager"])
def test_masks_of_pytorchs_classes_are_what_it_makes_of_them(mask, queries, diagonal, backend):
    """Their numbers are never written: what lies in that memory had been taken for a bias."""
    torch.manual_seed(0)
    model, x = Masked(mask, queries), torch.randn(2, 5, 8)
    run = model if backend is None else torch.compile(model, backend=backend)
    q, k, _ = model.qkv(x).double().unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
    seen = torch.ones(q[:, :, queries].shape[2], 5).tril(diagonal).bool()
    want = (q[:, :, queries] @ k.transpose(2, 3) / 2).masked_fill(~seen, -torch.inf).softmax(-1)
    with capture(run, layers="*") as captures:
        for _ in range(2):
            run(x)
            (layer,) = captures.values()
            torch.testing.assert_close(layer.map(), want.float())


class Reads(torch.Tensor):
    """What functions make of it is its own affair."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (lambda: torch.zeros(5, 5).as_subclass(Reads), "its mask is a Reads, a tensor with functions of its own"),
        (lambda: causal_lower_right(1, 5), r"its causal_lower_right\(1, 5\) is not that of 5 queries and 5 keys"),
    ],
)
def test_masks_whose_numbers_are_not_known_are_refused(mask, message):
    with pytest.raises(UserError, match=message), capture(model := Masked(mask)):
        model(torch.randn(2, 5, 8))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("weights", [False, True])
def test_what_dropout_has_changed_is_not_what_attention_gave(weights, training):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True)

        def forward(self, x):
            return self.attention(x, x, x, need_weights=weights)[0]

    model = Net().train(training)
    with capture(model) as captures:
        model(torch.randn(2, 5, 8))
    assert (captures["attention"].mixed is None) == training


def test_a_call_that_gives_its_weights_is_recorded_as_one_that_does_not():
    """With a mask for each sample and head [b h,n,n], and the weights that it gives as the oracle."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x, mask, weights):
            return self.attention(x, x, x, attn_mask=mask, need_weights=weights, average_attn_weights=False)

    model, x, mask = Net().eval(), torch.randn(3, 5, 8), torch.randn(6, 5, 5)
    found = []
    for weights in (True, False):
        with torch.no_grad(), capture(model) as captures:
            _, given = model(x, mask, weights)
        found.append((captures["attention"].map(), given))
    torch.testing.assert_close(found[0][0], found[0][1])
    torch.testing.assert_close(found[1][0], found[0][1])
