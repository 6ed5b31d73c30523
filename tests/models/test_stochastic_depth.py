"""Stochastic depth whose draws come with the batch, beside timm's."""

import timm
import torch
from timm.layers.drop import DropPath, drop_path

from dit_shd.models.stochastic_depth import StochasticDepth, branches, replace_drop_paths, set_draws


def vit(**options):
    torch.manual_seed(0)
    size = dict(img_size=16, patch_size=8, embed_dim=24, depth=3, num_heads=3, num_classes=5, in_chans=1)
    return timm.create_model("deit_tiny_patch16_224", drop_path_rate=0.3, **size, **options)


def test_a_branch_is_left_out_or_scaled_as_timm_does():
    """The same Bernoulli numbers give the same result; their mean is the branch."""
    x = torch.randn(2000, 3, 4)
    branch = StochasticDepth(0.3).train()
    branch.draws = torch.rand(2000)
    kept = branch.draws >= 0.3
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
    assert [round(branch.rate, 6) for branch in branches(model)] == [0.15, 0.15, 0.3, 0.3]
    x, draws = torch.randn(8, 1, 16, 16).double(), torch.rand(8, 4)
    set_draws(model, draws)
    whole = model(x)
    parts = []
    for first in range(0, 8, 2):
        set_draws(model, draws[first : first + 2])
        parts.append(model(x[first : first + 2]))
    torch.testing.assert_close(torch.cat(parts), whole)
    set_draws(model, 1 - draws)
    assert not torch.allclose(model(x), whole)


def test_a_model_with_no_branch_left_out_is_the_one_in_evaluation():
    model = vit()
    replace_drop_paths(model)
    x = torch.randn(2, 1, 16, 16)
    set_draws(model, torch.ones(2, 4))
    kept = model.train()(x)
    for branch in branches(model):
        branch.rate = 0.0
    torch.testing.assert_close(model(x), model.eval()(x))
    assert not torch.allclose(kept, model(x))  # scaled by 1 / (1 - rate)


def test_a_model_in_evaluation_needs_no_draws():
    """A teacher's branches are more than the student's, of which the batch has draws."""
    model = vit().eval()
    replace_drop_paths(model)
    set_draws(model, torch.ones(2, 0))
    assert all(branch.draws is None for branch in branches(model))
