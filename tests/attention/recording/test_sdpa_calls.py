"""nn.MultiheadAttention, whose call of attention is hidden in another function."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from dit_shd import capture


class Special(torch.Tensor):
    """Whose functions are its own."""


PADDING = torch.arange(5) >= torch.tensor([[5], [3]])


@pytest.mark.parametrize("padding", [None, PADDING])
@pytest.mark.parametrize(("training", "grad"), [(True, True), (False, True), (False, False)])
def test_a_compiled_model_of_it_is_recorded_as_the_plain_one_is(training, grad, padding):
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
