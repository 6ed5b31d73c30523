"""MDTv2: outputs against an independent float64 forward, the public layout, saving, memory."""

import math

import pytest
import torch
import transformer_oracle

from dit_shd.attention.bias import DenseBias
from dit_shd.core.errors import UserError
from dit_shd.models import loading
from dit_shd.models.families import mdt
from dit_shd.models.families.mdt import MDTv2, RelativePositionBias, kept_biases
from dit_shd.models.layers import FeedForward, sincos_2d

SMALL = dict(
    sample_size=8,
    patch_size=2,
    in_channels=3,
    num_layers=6,
    num_attention_heads=3,
    attention_head_dim=8,
    decode_layer=2,
    num_classes=5,
)


def build(**changes):
    torch.manual_seed(0)
    model = MDTv2(**{**SMALL, **changes})
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.15)
    return model.eval()


def inputs(b=3, c=3, side=8):
    r = torch.Generator().manual_seed(1)
    return torch.randn(b, c, side, side, generator=r), torch.tensor([0, 437, 999]), torch.tensor([0, 4, 5])


def keeps(b=3, n=16, kept=9):
    r = torch.Generator().manual_seed(2)
    return torch.stack([torch.randperm(n, generator=r)[:kept] for _ in range(b)])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("changes", [{}, dict(patch_size=4), dict(learn_sigma=False, decode_layer=4)])
def test_output_equals_the_oracle(masked, changes):
    model = build(**changes).double()
    x, t, y = inputs()
    n = model.tokens
    keep = keeps(n=n, kept=n * 9 // 16) if masked else None
    found = model(x.double(), t, y, keep=keep).sample
    torch.testing.assert_close(found, transformer_oracle.forward(model.to_public(), x, t, y, heads=3, keep=keep))


def test_gradients_equal_the_oracle():
    model = build().double()
    x, t, y = inputs()
    weight = torch.randn(3, 6, 8, 8)
    names, parameters = zip(*model.named_parameters())
    found = torch.autograd.grad((model(x.double(), t, y, keep=keeps()).sample * weight).sum(), parameters)
    state = {
        k: v.detach().double().requires_grad_(k in names) for k, v in model.to_public().items() if v.is_floating_point()
    }
    want_all = (transformer_oracle.forward(state, x, t, y, heads=3, keep=keeps()) * weight).sum()
    want = torch.autograd.grad(want_all, [state[n] for n in names])
    for name, f, w in zip(names, found, want):
        torch.testing.assert_close(f, w, msg=name)


def test_order_of_kept_tokens_does_not_matter():
    model = build()
    keep = keeps()
    outputs = [model(*inputs(), keep=k).sample for k in (keep, keep.sort(dim=1).values)]
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)


def test_public_layout_round_trip():
    model = build(patch_size=4, decode_layer=4, learn_sigma=False)
    state = model.to_public()
    index = state["sideblocks.0.attn.rel_pos_bias.relative_position_index"]
    assert index.shape == (4, 4)
    assert index.tolist()[0] == [4, 3, 1, 0]  # dy (2w-1) + dx with w = 2, from the first token to each
    wrapped = {f"module.{k}": v for k, v in state.items()}
    again = MDTv2.from_public(wrapped)
    assert {k: v for k, v in again.config.items() if k[0] != "_"} == {
        k: v for k, v in model.config.items() if k[0] != "_"
    }
    for key, value in again.to_public().items():
        assert torch.equal(value, state[key]), key


@pytest.mark.parametrize(("size", "millions"), [("S/2", 38.45), ("B/2", 152.11), ("XL/2", 742.26)])
def test_named_sizes_have_the_public_parameter_counts(size, millions):
    with torch.device("meta"):
        model = MDTv2.from_options(size)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == millions


def test_position_embedding_is_sine_cosine():
    table = sincos_2d(8, 3)[0]
    assert table.shape == (9, 8)
    for token in range(9):
        row, column = divmod(token, 3)
        for i in range(2):
            omega = 1 / 10000 ** (i / 2)
            expected = [
                math.sin(column * omega),
                math.cos(column * omega),
                math.sin(row * omega),
                math.cos(row * omega),
            ]
            assert table[token, [i, 2 + i, 4 + i, 6 + i]].tolist() == pytest.approx(expected, abs=1e-6)


def test_initialisation_is_adaln_zero():
    model = MDTv2(**SMALL)
    x, t, y = inputs()
    assert model(x, t, y).sample.abs().max() == 0
    assert model.mask_token.std() > 0
    tables = [m.relative_position_bias_table for m in model.modules() if isinstance(m, RelativePositionBias)]
    assert torch.cat(tables).std().item() == pytest.approx(0.02, rel=0.1)
    assert model.en_inblocks[0].adaLN_modulation[1].weight.abs().max() == 0


def test_save_and_load(tmp_path):
    model = build()
    model.save_pretrained(tmp_path / "m")
    assert (tmp_path / "m" / "diffusion_pytorch_model.safetensors").is_file()
    again = loading.load(tmp_path / "m")
    assert torch.equal(again(*inputs()).sample, model(*inputs()).sample)


def test_gradient_checkpointing_changes_nothing():
    model = build().train()
    x, t, y = inputs()
    plain = torch.autograd.grad(model(x, t, y, keep=keeps()).sample.square().sum(), model.pos_embed)[0]
    model.enable_gradient_checkpointing()
    again = torch.autograd.grad(model(x, t, y, keep=keeps()).sample.square().sum(), model.pos_embed)[0]
    torch.testing.assert_close(plain, again)


def test_tokens_keep_float32_under_autocast():
    """Between blocks, also behind a long skip connection."""
    model, (x, t, y) = build(), inputs()
    dtypes = {}
    for name, block in model.named_modules():
        if isinstance(block, mdt.MDTBlock):
            block.register_forward_hook(lambda _, args, tokens, name=name: dtypes.update({name: tokens.dtype}))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        model(x, t, y, keep=keeps())
    assert len(dtypes) == SMALL["num_layers"] + 1 and {*dtypes.values()} == {torch.float32}


def test_no_map_is_saved_for_the_backward():
    """Nothing of n x n elements a head is kept: at 64 tokens a map has 4096 elements a head and sample."""
    model = build(sample_size=16, in_channels=3).train()
    n, sizes = model.tokens, []

    def note(tensor):
        if tensor.ndim >= 2 and tensor.shape[-1] == n and tensor.shape[-2] == n:
            sizes.append(tensor.shape)
        return tensor

    x = torch.randn(2, 3, 16, 16)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model(x, torch.tensor([1, 2]), torch.tensor([1, 2]))
    assert n == 64
    assert sizes == []


def test_scalar_timestep_and_tuple():
    model = build()
    x, _, y = inputs()
    whole = model(x, torch.tensor([7, 7, 7]), y).sample
    assert torch.equal(model(x, 7, y, return_dict=False)[0], whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(num_layers=5), "must be even"),
        (dict(decode_layer=0), "must be even"),
        (dict(sample_size=9), "multiple of patch_size"),
        (dict(num_attention_heads=1, attention_head_dim=6), "multiple of 4"),
    ],
)
def test_impossible_shapes_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        MDTv2(**{**SMALL, **changes})


def test_unknown_size_and_foreign_state_are_refused():
    with pytest.raises(UserError, match=r"no size 'M/2'. Sizes: S/2"):
        MDTv2.from_options("M/2")
    with pytest.raises(UserError, match="not a state dict of MDTv2"):
        MDTv2.from_public({"weight": torch.zeros(1)})
    state = build().to_public()
    del state["de_blocks.1.attn.qkv.bias"]
    with pytest.raises(UserError, match="1 tensors missing"):
        MDTv2.from_public(state)


def test_a_folder_whose_weights_do_not_fit_is_refused(tmp_path):
    import json

    for changes, message in (
        (dict(num_layers=4), "unknown"),
        (dict(num_layers=8), "missing"),
        (dict(num_classes=9), "cannot be read as MDTv2|misshapen"),
    ):
        folder = tmp_path / str(changes)
        build().save_pretrained(folder)
        config = folder / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))
        with pytest.raises(UserError, match=message):
            loading.load(folder)
    with pytest.raises(UserError, match="no such model among"):
        loading.load("asset:../losses")


@pytest.mark.parametrize("budget", [mdt.KEPT_MIB, 0])
def test_kept_biases_change_nothing_but_time(monkeypatch, budget):
    """Dense ones within the budget, lines beyond it; a table that changes counts from the next block on."""
    monkeypatch.setattr(mdt, "KEPT_MIB", budget)
    model, (x, t, y) = build(), inputs()
    modules = [m for m in model.modules() if isinstance(m, RelativePositionBias)]
    with torch.no_grad():
        for _ in range(2):
            plain = model(x, t, y).sample
            with kept_biases(model, torch.float32):
                first = modules[0].kept
                assert isinstance(first, DenseBias) == (budget > 0)
                found, again = model(x, t, y).sample, model(x, t, y).sample
                assert modules[0].kept is first
                masked = model(x, t, y, keep=keeps()).sample
            torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-5)
            assert torch.equal(found, again)
            torch.testing.assert_close(masked, model(x, t, y, keep=keeps()).sample, rtol=1e-5, atol=1e-5)
            assert all(m.kept is None for m in modules)
            for m in modules:
                m.relative_position_bias_table.normal_()
        assert (model(x, t, y).sample - plain).abs().max() > 1e-3


def test_kept_biases_are_of_the_queries_dtype_and_an_inner_block_gives_back_the_outer_ones():
    model = build()
    module = next(m for m in model.modules() if isinstance(m, RelativePositionBias))
    with torch.no_grad(), kept_biases(model, torch.float32):
        outer = module.kept
        with kept_biases(model, torch.bfloat16):
            assert module.kept.leaves[0].dtype == torch.bfloat16
        assert module.kept is outer
    assert module.kept is None


def test_kept_biases_are_one_graph():
    """What sampling compiles has no break in it."""
    model, (x, t, y) = build(), inputs()
    with torch.no_grad(), kept_biases(model, torch.float32):
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(compiled(x, t, y).sample, model(x, t, y).sample, rtol=1e-5, atol=1e-5)


def test_a_feed_forward_without_a_graph_is_the_same():
    torch.manual_seed(0)
    mlp, x = FeedForward(48, 4.0), torch.randn(3, 16, 48)
    with torch.no_grad():
        found = mlp(x)
        torch.testing.assert_close(found.double(), mlp.double()(x.double()), rtol=1e-5, atol=1e-5)
        mlp.float()
        with torch.autocast("cpu", torch.bfloat16):
            assert mlp(x).dtype == torch.bfloat16
    torch.testing.assert_close(mlp(x), found, rtol=1e-5, atol=1e-5)
    assert mlp(x).requires_grad
