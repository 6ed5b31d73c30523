"""Stochastic depth whose draws come with the batch, beside timm's."""

import pytest
import timm
import torch
from timm.layers.drop import DropPath, drop_path

from dit_shd.models.families.timm import TimmModel
from dit_shd.models.stochastic_depth import StochasticDepth, branches, replace_drop_paths, set_draws


def vit(**options):
    torch.manual_seed(0)
    size = dict(img_size=16, patch_size=8, embed_dim=24, depth=3, num_heads=3, num_classes=5, in_chans=1)
    return timm.create_model("deit_tiny_patch16_224", drop_path_rate=0.3, **size, **options)


def modules(model):
    return [module for module in model.modules() if isinstance(module, StochasticDepth)]


def in_parts(model, x, draws):
    """What the model gives, two samples at a time."""
    parts = []
    for two, of_two in zip(x.split(2), draws.split(2)):
        set_draws(model, of_two)
        parts.append(model(two))
    return torch.cat(parts)


def test_a_branch_is_left_out_or_scaled_as_timm_does():
    """The same Bernoulli numbers give the same result; their mean is the branch."""
    x = torch.randn(2000, 3, 4)
    branch = StochasticDepth(0.3).train()
    branch.draws = torch.rand(2000, 1)
    kept = branch.draws[:, 0] >= 0.3
    torch.testing.assert_close(branch(x), x * kept[:, None, None] / 0.7)
    torch.manual_seed(1)
    scales = {float(v) for v in drop_path(torch.ones(500, 1), 0.3, training=True).unique()}
    assert scales == {float(v) for v in branch(torch.ones(2000, 1)).unique()}
    assert abs(float(kept.float().mean()) - 0.7) < 0.06


def test_nothing_is_left_out_in_evaluation():
    x = torch.randn(4, 3)
    assert StochasticDepth(0.9).eval()(x) is x
    assert StochasticDepth(0.0).train()(x) is x


def test_each_sample_has_its_own_draws_however_the_batch_is_divided():
    model = vit().double().train()
    replace_drop_paths(model)
    assert not any(isinstance(module, DropPath) for module in model.modules())
    assert [round(branch.rate, 6) for branch in modules(model)] == [0.15, 0.15, 0.3, 0.3]
    x, draws = torch.randn(8, 1, 16, 16).double(), torch.rand(8, 4)
    set_draws(model, draws)
    whole = model(x)
    torch.testing.assert_close(in_parts(model, x, draws), whole)
    set_draws(model, 1 - draws)
    assert not torch.allclose(model(x), whole)


def test_a_model_with_no_branch_left_out_is_the_one_in_evaluation():
    model = vit()
    replace_drop_paths(model)
    x = torch.randn(2, 1, 16, 16)
    set_draws(model, torch.ones(2, 4))
    kept = model.train()(x)
    for branch in modules(model):
        branch.rate = 0.0
    torch.testing.assert_close(model(x), model.eval()(x))
    assert not torch.allclose(kept, model(x))  # scaled by 1 / (1 - rate)


def test_a_model_in_evaluation_needs_no_draws():
    """A teacher's branches are more than the student's, of which the batch has draws."""
    model = vit().eval()
    replace_drop_paths(model)
    set_draws(model, torch.ones(2, 0))
    assert all(branch.draws is None for branch in modules(model))


SHARED = ("mixer_s32_224", "resmlp_12_224", "cait_xxs24_224", "convit_tiny", "tnt_s_legacy_patch16_224")
"""Architectures whose blocks call one DropPath for both of their branches."""


def shared(name):
    torch.manual_seed(0)
    model = TimmModel(model=name, img_size=64, num_classes=5, drop_path_rate=0.4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)  # some heads begin at zero
    return model


def rates(model):
    """Of each column of the draws."""
    return [module.rate for module in modules(model) for _ in range(module.calls)]


@pytest.mark.parametrize("name", SHARED)
def test_every_call_of_a_shared_module_has_its_own_draws(name):
    """Each column of the draws decides by itself: dropping one branch is not dropping another."""
    model = shared(name).train()
    count = branches(model)
    assert count > len(modules(model))
    able = [column for column, rate in enumerate(rates(model)) if rate][:8]
    draws = torch.ones(len(able), count)
    draws[range(len(able)), able] = 0.0
    set_draws(model, draws)
    with torch.no_grad():
        results = model(torch.randn(1, 3, 64, 64).expand(len(able), -1, -1, -1))
    assert len({tuple(row.tolist()) for row in results}) == len(able)


@pytest.mark.parametrize("name", SHARED)
def test_shared_modules_do_not_depend_on_how_a_batch_is_divided(name):
    model = shared(name).train()
    x, draws = torch.randn(6, 3, 64, 64), torch.rand(6, branches(model))
    set_draws(model, draws)
    whole = model(x)
    torch.testing.assert_close(in_parts(model, x, draws), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in SHARED if name != "convit_tiny"])
def test_recomputed_blocks_drop_what_they_had_dropped(name):
    def gradients(recomputed):
        model = shared(name).train()
        if recomputed:
            model.enable_gradient_checkpointing()
        torch.manual_seed(1)
        set_draws(model, torch.rand(4, branches(model)))
        model(torch.randn(4, 3, 64, 64)).square().sum().backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    for one, other in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
