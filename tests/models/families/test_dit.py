"""DiT: outputs against an independent float64 forward, the public layout, distillation."""

import math

import pytest
import torch
import transformer_oracle
from runs import run
from torch.nn.utils import prune

from dit_shd import SHD, capture
from dit_shd.core.errors import UserError
from dit_shd.models import loading
from dit_shd.models.families.dit import DiT
from dit_shd.models.families.mdt import MDTv2

SMALL = dict(
    sample_size=8,
    patch_size=2,
    in_channels=3,
    num_layers=3,
    num_attention_heads=3,
    attention_head_dim=8,
    num_classes=5,
)


def build(**changes):
    torch.manual_seed(0)
    model = DiT(**{**SMALL, **changes})
    for p in model.parameters():
        if p.requires_grad:
            torch.nn.init.normal_(p, std=0.15)
    return model.eval()


def inputs(b=3, c=3, side=8):
    r = torch.Generator().manual_seed(1)
    return torch.randn(b, c, side, side, generator=r), torch.tensor([0, 437, 999]), torch.tensor([0, 4, 5])


@pytest.mark.parametrize("changes", [{}, dict(patch_size=4), dict(learn_sigma=False), dict(mlp_ratio=2.0)])
def test_output_and_gradients_equal_the_oracle(changes):
    model = build(**changes).double()
    x, t, y = inputs()
    found = model(x.double(), t, y).sample
    names, parameters = zip(*[(k, p) for k, p in model.named_parameters() if p.requires_grad])
    state = {k: v.detach().clone().requires_grad_(k in names) for k, v in model.to_public().items()}
    want = transformer_oracle.forward(state, x, t, y, heads=3)
    torch.testing.assert_close(found, want)
    weight = torch.randn_like(found)
    grads = torch.autograd.grad((found * weight).sum(), parameters)
    wanted = torch.autograd.grad((want * weight).sum(), [state[n] for n in names])
    for name, f, w in zip(names, grads, wanted):
        torch.testing.assert_close(f, w, msg=name)


def test_the_position_embedding_is_fixed_and_kept():
    model = build()
    assert [k for k, p in model.named_parameters() if not p.requires_grad] == ["pos_embed"]
    again = DiT.from_public({**model.to_public(), "pos_embed": torch.ones(1, 16, 24)}, heads=3)
    assert again.pos_embed.eq(1).all()


@pytest.mark.parametrize(
    ("size", "millions", "heads"), [("S/2", 33, 6), ("B/2", 130, 12), ("L/2", 458, 16), ("XL/2", 675, 16)]
)
def test_named_sizes_have_the_papers_parameter_counts_and_heads(size, millions, heads):
    """Tables 4 and 1 of arXiv 2212.09748; public files do not say how many heads they have."""
    with torch.device("meta"):
        model = DiT.from_options(size)
        assert model.config.num_attention_heads == heads
        assert DiT.from_options(size.replace("2", "8")).tokens == 16
    assert math.floor(sum(p.numel() for p in model.parameters()) / 1e6 + 0.5) in (millions, millions + 1)


def test_initialisation_is_adaln_zero():
    model = DiT(**SMALL)
    assert model(*inputs()).sample.abs().max() == 0
    assert model.blocks[0].adaLN_modulation[1].weight.abs().max() == 0
    assert 0.015 < model.y_embedder.embedding_table.weight.std() < 0.025


@pytest.mark.parametrize("changes", [{}, dict(patch_size=4, learn_sigma=False, sample_size=16)])
def test_public_layout_round_trip(changes):
    model = build(**changes)
    state = model.to_public()
    again = DiT.from_public({f"module._orig_mod.{k}": v for k, v in state.items()}, heads=3)
    assert {k: v for k, v in again.config.items() if k[0] != "_"} == {
        k: v for k, v in model.config.items() if k[0] != "_"
    }
    assert again.to_public().keys() == state.keys()
    assert all(torch.equal(v, state[k]) for k, v in again.to_public().items())


def test_heads_are_known_by_width_unless_given():
    state = DiT.from_options("S/2", num_layers=1).to_public()
    for given, heads in ((None, 6), (12, 12)):
        assert DiT.from_public(state, given).config.num_attention_heads == heads
    with pytest.raises(UserError, match="heads: wanted a divisor of the width 384, found 7"):
        DiT.from_public(state, heads=7)
    with pytest.raises(UserError, match=r"24 is none of the public widths \(384, 768, 1024, 1152\); give heads=N"):
        loading.of_public(build().to_public())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("blocks.1.attn.qkv.bias"), "1 tensors missing"),
        (lambda s: s.update({"blocks.0.attn.q_norm.weight": torch.ones(8)}), "1 unknown"),
        (lambda s: s.update(pos_embed=torch.ones(1, 15, 24)), "1 of another shape"),
        (lambda s: s.update(pos_embed=torch.ones(15)), "pos_embed is of shape"),
        (lambda s: s.pop("pos_embed"), "pos_embed is missing"),
        (lambda s: s.update(pos_embed=s["pos_embed"].int()), r"pos_embed \(torch.int32\) is no dense floating-point"),
        (lambda s: s.update(pos_embed=s["pos_embed"].to_sparse()), "is no dense floating-point tensor"),
    ],
)
def test_foreign_tensors_are_refused(change, message):
    state = build().to_public()
    change(state)
    with pytest.raises(UserError, match=message):
        DiT.from_public(state, heads=3)


def test_unknown_sizes_and_impossible_shapes_are_refused():
    with pytest.raises(UserError, match=r"DiT: no size 'XL/3'. Sizes: S/2, S/4"):
        DiT.from_options("XL/3")
    with pytest.raises(UserError, match="DiT: sample_size 9 is not a multiple"):
        DiT(**{**SMALL, "sample_size": 9})
    with pytest.raises(UserError, match="not a state dict of DiT or MDTv2"):
        loading.of_public({"weight": torch.zeros(1)})


def test_saving_checkpointing_and_compiling_change_nothing(tmp_path):
    model = build()
    x, t, y = inputs()
    want = model(x, t, y).sample
    model.save_pretrained(tmp_path / "m")
    assert torch.equal(loading.load(tmp_path / "m")(x, t, y).sample, want)
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(x, t, y).sample, want)
    weight = model.blocks[0].attn.qkv.weight
    gradient = torch.autograd.grad(want.square().sum(), weight)[0]
    model.enable_gradient_checkpointing()
    torch.testing.assert_close(torch.autograd.grad(model(x, t, y).sample.square().sum(), weight)[0], gradient)


def family(name, heads):
    shared = dict(SMALL, num_attention_heads=heads)
    torch.manual_seed(heads)
    model = DiT(**shared) if name == "dit" else MDTv2(**{**shared, "num_layers": 4, "decode_layer": 2})
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.15)
    return model


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("teacher", "student"), [("dit", "dit"), ("mdt", "dit"), ("dit", "mdt")])
def test_families_teach_each_other(teacher, student, checkpointing):
    """Of the last layer, whose output no other layer's map depends on, queries and keys learn, and nothing else."""
    teaching, learning = family(teacher, 4).eval().requires_grad_(False), family(student, 2)
    if checkpointing:
        learning.enable_gradient_checkpointing()
    x, timestep, y = inputs()
    with capture(teaching) as t, capture(learning) as s:
        teaching(x, timestep, y)
        learning(x, timestep, y)
    SHD()(t, s).backward()
    module = (learning.blocks if student == "dit" else learning.de_blocks)[-1].attn
    query, key, value = module.qkv.weight.grad.chunk(3)
    assert query.abs().max() > 0 and key.abs().max() > 0 and value.abs().max() == 0
    assert module.proj.weight.grad is None


def test_a_capture_gives_the_layers_output():
    model = build()
    seen = []
    model.blocks[1].attn.register_forward_hook(lambda module, args, output: seen.append(output))
    with capture(model) as found:
        model(*inputs())
    assert list(found) == [f"blocks.{i}.attn" for i in range(3)]
    one = found["blocks.1.attn"]
    again = torch.einsum("bhnm,bhmd,hde->bne", one.map(), one.value, one.out) + model.blocks[1].attn.proj.bias
    torch.testing.assert_close(again, seen[0], rtol=1e-4, atol=1e-5)


STUDENT = dict(SMALL, name="dit", in_channels=1, num_classes=3, num_attention_heads=2, attention_head_dim=4)


@pytest.mark.parametrize("learn_sigma", [True, False])
def test_training_distilling_and_sampling(values, tmp_path, learn_sigma):
    """A DiT is trained, then teaches one of half the heads; neither has a masked pass, and one has no variance."""
    plain = {**values, "mask_ratio": None, "steps": 2, "run": str(tmp_path / "teacher")}
    first, _ = run({**plain, "student": {**STUDENT, "num_attention_heads": 4}, "losses": [], "teacher": None})
    losses = [{"name": "output"}, {"name": "shd"}]
    student = {**STUDENT, "learn_sigma": learn_sigma}
    second, (metrics, _) = run(
        {**plain, "run": str(tmp_path / "student"), "student": student, "teacher": str(first.run), "losses": losses}
    )
    assert metrics["plain/shd"] > 0
    assert ("plain/variational" in metrics) == learn_sigma
    model = loading.load(second.run)
    assert type(model) is DiT
    assert torch.equal(model.pos_embed, DiT(**{k: v for k, v in student.items() if k != "name"}).pos_embed)
    from dit_shd.diffusion.sampler import sample

    images, _ = sample(model, count=2, steps=3, guidance=1.5, rounding="nearest", guidance_schedule="constant")
    assert images.shape == (2, 8, 8, 1)
    message = r"^task\.mask_ratio: the student \(DiT\) has no masked pass; set task\.mask_ratio=null"
    with pytest.raises(UserError, match=message):
        run({**plain, "student": student, "mask_ratio": 0.3, "run": str(tmp_path / "masked")})
    assert not (tmp_path / "masked").exists()


def test_hooks_of_an_mlp_run_where_its_maps_are_fused():
    """On a CPU without a graph: those that read, and those that make the weights, as pruning's."""
    model, seen = build(), []
    mlp = model.blocks[1].mlp
    prune.l1_unstructured(mlp.fc1, "weight", 0.5)
    with torch.no_grad():
        mlp.fc1.weight_orig.mul_(2)  # as an optimizer does; the weight is made of it before the next product
        pruned = model(*inputs()).sample
    torch.testing.assert_close(pruned, model(*inputs()).sample.detach(), rtol=1e-4, atol=1e-5)
    for linear in (model.blocks[0].mlp.fc1, model.blocks[2].mlp.fc2):
        linear.register_forward_hook(lambda linear, args, output: seen.append(output.shape))
    with torch.no_grad():
        model(*inputs())
    assert seen == [(3, 16, 96), (3, 16, 24)]


@pytest.mark.parametrize(("heads", "ratio"), [(11, 2.4), (19, 2.4)])
def test_a_public_file_of_any_hidden_width_is_read(heads, ratio):
    """hidden / width * width may be one less than hidden in floating point."""
    sizes = dict(num_attention_heads=heads, attention_head_dim=64 if heads == 11 else 72, num_layers=1, sample_size=4)
    model = DiT(**sizes, patch_size=2, in_channels=1, num_classes=2, mlp_ratio=ratio)
    again = DiT.from_public(model.to_public(), heads)
    assert again.blocks[0].mlp.fc1.weight.shape == model.blocks[0].mlp.fc1.weight.shape
