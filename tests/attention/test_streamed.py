"""The relative bias, streamed attention and captures."""

import oracle
import pytest
import torch

from dit_shd.attention.bias import DenseBias
from dit_shd.attention.capture import Capture
from dit_shd.attention.recording.attach import capture
from dit_shd.attention.relative_bias import RelativeBias
from dit_shd.attention.streamed import attend
from dit_shd.core.errors import UserError
from dit_shd.models.families.mdt import MDTv2

WINDOW, N = 4, 16


def beit_index():
    """The relative position index of BEiT, built from coordinates pair by pair."""
    index = torch.empty(N, N, dtype=torch.long)
    for i in range(N):
        for j in range(N):
            dy, dx = i // WINDOW - j // WINDOW + WINDOW - 1, i % WINDOW - j % WINDOW + WINDOW - 1
            index[i, j] = dy * (2 * WINDOW - 1) + dx
    return index


def test_relative_bias_is_the_table_at_beits_index():
    table = torch.randn((2 * WINDOW - 1) ** 2 + 3, 3)
    bias = RelativeBias(table, WINDOW)
    whole = table[beit_index()].permute(2, 0, 1)[None]
    torch.testing.assert_close(bias.rows(slice(0, N)), whole, rtol=0, atol=0)
    torch.testing.assert_close(bias.rows(slice(3, 9)), whole[:, :, 3:9], rtol=0, atol=0)


def test_relative_bias_of_kept_tokens_is_gathered():
    table = torch.randn((2 * WINDOW - 1) ** 2 + 3, 3)
    keep = torch.tensor([[0, 5, 9], [15, 2, 1]])
    bias = RelativeBias(table, WINDOW, RelativeBias.codes(WINDOW)[keep])
    for i, tokens in enumerate(keep):
        torch.testing.assert_close(bias.rows(slice(0, 3))[i], table[beit_index()[tokens][:, tokens]].permute(2, 0, 1))


@pytest.mark.parametrize("chunk_mib", [64, 1e-3])
@pytest.mark.parametrize("kept", [None, 7])
def test_attention_with_a_learnable_bias_equals_autograd(chunk_mib, kept):
    b, h, d = 2, 3, 5
    n = kept or N
    r = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(b, h, n, d, generator=r, dtype=torch.float64).requires_grad_() for _ in range(3))
    table = torch.randn((2 * WINDOW - 1) ** 2 + 3, h, generator=r, dtype=torch.float64).requires_grad_()
    codes = RelativeBias.codes(WINDOW)
    keep = None if kept is None else torch.stack([torch.randperm(N, generator=r)[:kept] for _ in range(b)])
    bias = RelativeBias(table, WINDOW, None if keep is None else codes[keep])
    index = beit_index()[None] if keep is None else torch.stack([beit_index()[t][:, t] for t in keep])
    found = attend(q, k, v, 0.4, bias, chunk_mib=chunk_mib)
    want = oracle.maps(q, k, 0.4, table[index].permute(0, 3, 1, 2)) @ v
    torch.testing.assert_close(found, want)
    upstream = torch.randn(want.shape, generator=r, dtype=torch.float64)
    for f, w in zip(*(torch.autograd.grad(o, [q, k, v, table], upstream) for o in (found, want))):
        torch.testing.assert_close(f, w)


def test_a_bias_that_broadcasts_gets_its_gradient():
    q, k, v = (torch.randn(2, 3, 6, 4, dtype=torch.float64) for _ in range(3))
    for shape in [(1, 3, 6, 6), (2, 1, 1, 6), (6,)]:
        tensor = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        weight = torch.randn(2, 3, 6, 4, dtype=torch.float64)
        found = torch.autograd.grad((attend(q, k, v, 1.0, DenseBias(tensor)) * weight).sum(), tensor)[0]
        want = torch.autograd.grad(((oracle.maps(q, k, 1.0, tensor) @ v) * weight).sum(), tensor)[0]
        torch.testing.assert_close(found, want)


def small(**changes):
    options = dict(
        sample_size=8, patch_size=2, in_channels=1, num_layers=4, num_attention_heads=2, attention_head_dim=8
    )
    return MDTv2(**{**options, "decode_layer": 2, "num_classes": 3, **changes})


def inputs(b=2):
    return torch.randn(b, 1, 8, 8), torch.tensor([5, 900][:b]), torch.tensor([0, 3][:b])


def test_captures_rebuild_the_layers_output():
    model = small()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    outputs = {}
    for name, module in model.named_modules():
        if name.endswith("attn"):
            module.register_forward_hook(lambda m, a, o, name=name: outputs.__setitem__(name, (o, m.proj.bias)))
    with capture(model) as captures:
        model(*inputs())
    assert list(captures) == [
        "en_inblocks.0.attn",
        "en_outblocks.0.attn",
        "de_blocks.0.attn",
        "de_blocks.1.attn",
    ]
    for name, c in captures.items():
        rebuilt = torch.einsum("bhnm,bhmd,hde->bne", c.map(), c.value, c.out)
        torch.testing.assert_close(rebuilt + outputs[name][1], outputs[name][0], rtol=1e-4, atol=1e-5)


def test_capture_changes_nothing_and_leaves_nothing():
    model = small()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    x = inputs()
    before = model(*x).sample
    with capture(model, ["de_blocks.*"]) as captures:
        inside = model(*x).sample
        first = captures["de_blocks.0.attn"]
        model(*x)
        assert captures["de_blocks.0.attn"] is not first
    assert list(captures) == ["de_blocks.0.attn", "de_blocks.1.attn"]
    assert torch.equal(before, inside)
    assert torch.equal(before, model(*x).sample)
    assert all(m.recorder is None for m in model.modules() if hasattr(m, "recorder"))
    with pytest.raises(RuntimeError, match="boom"), capture(model):
        raise RuntimeError("boom")
    assert all(m.recorder is None for m in model.modules() if hasattr(m, "recorder"))
    assert not model._forward_pre_hooks


def test_capture_refuses_models_and_layers_it_does_not_know():
    linear = torch.nn.Linear(2, 2)
    with pytest.raises(UserError, match="no attention module ran"), capture(linear):
        linear(torch.zeros(1, 2))
    with pytest.raises(UserError, match=r"no layer fits 'blocks\.9'"), capture(small(), ["blocks.9"]):
        pass


def test_captures_that_do_not_fit_together_are_refused():
    x = torch.randn(2, 3, 4, 5)
    with pytest.raises(ValueError, match="wanted query"):
        Capture(x, x[:, :2], x, 1.0)
    with pytest.raises(ValueError, match="broadcasts to"):
        Capture(x, x, x, 1.0, DenseBias(torch.zeros(4, 7)))


def test_names_are_plain_under_wrappers_and_captures_nest():
    class Wrapper(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, *args):
            return self.module(*args)

    wrapped = Wrapper(small())
    with capture(wrapped) as outer, capture(wrapped, ["de_blocks.0.*"]) as inner:
        wrapped(*inputs())
    assert list(inner) == ["de_blocks.0.attn"]
    assert list(outer) == ["en_inblocks.0.attn", "en_outblocks.0.attn", "de_blocks.0.attn", "de_blocks.1.attn"]
    assert not outer["de_blocks.0.attn"].detach().map().requires_grad
    assert outer["de_blocks.0.attn"].map().requires_grad


def test_a_fully_masked_row_attends_to_nothing_and_has_finite_gradients():
    q, k, v = (torch.randn(1, 2, 4, 3, requires_grad=True) for _ in range(3))
    mask = torch.ones(4, 4, dtype=torch.bool)
    mask[2] = False
    out = attend(q, k, v, 1.0, DenseBias(mask))
    assert out[:, :, 2].abs().max() == 0
    grads = torch.autograd.grad(out.square().sum(), [q, k, v])
    assert all(torch.isfinite(g).all() for g in grads)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("learnable", [True, False])
def test_a_row_masked_by_the_smallest_number_is_uniform_in_both_precisions(dtype, learnable):
    """Forward as in backward; float32's finfo.min would be -inf in bfloat16."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 1, 4, 8, dtype=dtype) for _ in range(3))
    mask = torch.zeros(1, 1, 4, 4)
    mask[..., 1, :], mask[..., 2, :] = torch.finfo(torch.float32).min, float("-inf")
    bias = DenseBias(mask.requires_grad_() if learnable else mask)
    row, empty = attend(query, key, value, bias=bias, scale=1.0)[0, 0, 1:3]
    torch.testing.assert_close(row.float(), value[0, 0].float().mean(0), rtol=1e-2, atol=1e-2)
    assert not empty.any()


def test_bf16_maps_are_those_of_the_inputs_in_float32():
    """Large scores: rounding them to bf16 before the softmax would move maps by several percent."""
    q, k = (torch.randn(1, 2, 32, 16).mul_(4).bfloat16() for _ in range(2))
    low = Capture(q, k, k, 0.25)
    high = Capture(q.float(), k.float(), k.float(), 0.25)
    torch.testing.assert_close(low.map(), high.map())


def test_attention_under_autocast_runs_and_differentiates():
    q, k, v = (torch.randn(1, 2, 4, 4, requires_grad=True) for _ in range(3))
    table = torch.zeros((2 * 2 - 1) ** 2 + 3, 2, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = attend(q, k, v, 0.5, RelativeBias(table, 2))
    grads = torch.autograd.grad(out.float().square().sum(), [q, k, v, table])
    want = torch.autograd.grad(attend(q, k, v, 0.5).square().sum(), [q, k, v])
    for g, w in zip(grads, want):
        torch.testing.assert_close(g, w, rtol=0.1, atol=0.05)
