"""Squeezed heads: the best of their rank, by Eckart and Young."""

import numpy as np
import pytest
import torch

from dit_shd.distillation.initialisation.heads import head_maps, squeezed_scores, squeezed_values, white_moments
from dit_shd.distillation.initialisation.moments import HeadMoments
from dit_shd.distillation.initialisation.plan import Heads, merged


def moment(x):
    return x.t() @ x / len(x)


def test_squeezed_scores_are_the_best_of_their_rank():
    """Against Eckart and Young's figure: the error over all pairs is what the left out singular values say."""
    g = torch.Generator().manual_seed(0)
    query, key = (torch.randn(200, 6, generator=g).double() @ torch.randn(6, 6, generator=g).double() for _ in "qk")
    key = key - key.mean(0)
    weight = torch.tensor([0.7, 0.3]).double()
    scores = query @ torch.diag(weight.repeat_interleave(3)) @ key.t()
    best = np.linalg.svd(scores.numpy(), compute_uv=False)
    for width in (2, 3, 6, 8):
        c_q, c_k = squeezed_scores(moment(query), moment(key), weight, width)
        assert c_q.shape == c_k.shape == (width, 6)
        error = (query @ c_q.t() @ c_k @ key.t() - scores).square().sum().item()
        assert error == pytest.approx((best[width:] ** 2).sum(), rel=1e-6, abs=1e-12 * (best**2).sum())


def test_queries_have_their_mean_and_keys_have_not():
    """Both far from zero: to a softmax scores are the same with any mean of the keys, and not of the queries."""
    g = torch.Generator().manual_seed(0)
    query, key = (torch.randn(200, 8, generator=g) + 9 * torch.randn(8, generator=g) for _ in "qk")
    measured = HeadMoments(2)
    for moments, x in ((measured.query, query), (measured.key, key), (measured.output, key)):
        moments.add(x)
    maps = head_maps(Heads(((0, 1),), ((0.7, 0.3),)), measured.moments(), torch.eye(8).double(), 4, 2)
    query, key = query.double(), (key - key.mean(0)).double()
    scores = query @ torch.tensor([0.7, 0.3]).double().repeat_interleave(4).diag() @ key.t() / 4**0.5
    error = ((query @ maps.query.t()) @ (key @ maps.key.t()).t() / 2**0.5 - scores).square().sum().item()
    assert error == pytest.approx((np.linalg.svd(scores.numpy(), compute_uv=False)[2:] ** 2).sum(), rel=1e-3)


def test_white_moments_are_those_of_inputs_that_are_white():
    """Every unit vector and its opposite, by the root of their number: the mean is 0, and the second moment 1."""
    g = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(18, 4, generator=g), torch.randn(18, generator=g)
    features = (2 * torch.cat([torch.eye(4), -torch.eye(4)]) @ weight.t() + bias).chunk(3, 1)
    measured = HeadMoments(2)
    for moments, x in zip((measured.query, measured.key, measured.output), features):
        moments.add(x)
    for found, wanted in zip(white_moments(weight.double(), bias.double()), measured.moments()):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("student_width", [2, 4, 6])
def test_heads_without_a_share_are_left_out(student_width):
    g = torch.Generator().manual_seed(0)
    moments = [moment(torch.randn(50, 12, generator=g).double()) for _ in "qko"]
    out = torch.randn(12, 5, generator=g).double()
    some, alone = Heads(((0, 2, 1),), ((0.0, 1.0, 0.0),)), Heads(((2,),), ((1.0,),))
    found, wanted = (vars(head_maps(heads, moments, out, 4, student_width)) for heads in (some, alone))
    torch.testing.assert_close(found, wanted)


def test_shares_of_a_group_are_of_its_weights_and_equal_where_it_has_none():
    weight = torch.tensor([0.0, 3.0, 0.0, 1.0, 0.0]).double()
    assert merged(((0, 2), (1, 3, 4)), weight).shares == ((0.5, 0.5), (0.75, 0.25, 0.0))
    assert merged(((0, 2), (1, 3, 4)), None).shares == ((0.5, 0.5), pytest.approx((1 / 3,) * 3))


def test_squeezed_values_are_the_best_of_their_rank():
    g = torch.Generator().manual_seed(0)
    u = torch.randn(200, 6, generator=g).double() @ torch.randn(6, 6, generator=g).double()
    out = torch.randn(6, 5, generator=g).double()
    best = np.linalg.svd((u @ out).numpy(), compute_uv=False)
    for width in (1, 3, 5, 7):
        c_v, back = squeezed_values(moment(u), out, width)
        assert c_v.shape == (width, 6) and back.shape == (6, width)
        error = (u @ c_v.t() @ back.t() @ out - u @ out).square().sum().item()
        assert error == pytest.approx((best[width:] ** 2).sum(), rel=1e-6, abs=1e-12 * (best**2).sum())


def test_features_that_hardly_pass_are_not_too_small_to_learn():
    """W of rank 2: the others have singular values of rounding, 1e-16, of which values had 1e-8 of the first's size."""
    g = torch.Generator().manual_seed(0)
    u = torch.randn(200, 6, generator=g).double()
    out = torch.randn(6, 2, generator=g).double() @ torch.randn(2, 5, generator=g).double()
    c_v, back = squeezed_values(moment(u), out, 4)
    sizes = (u @ c_v.t()).square().mean(0).sqrt()
    assert sizes.min() > 1e-4 * sizes.max()
    torch.testing.assert_close(u @ c_v.t() @ back.t() @ out, u @ out)


def test_with_white_inputs_the_values_are_the_truncated_svd_of_the_summed_products():
    """X = sum_i W_i^V W_i^O, the merged head's X_1 + X_2."""
    w_v, w_o = torch.randn(7, 6).double(), torch.randn(6, 7).double()
    c_v, back = squeezed_values(w_v.t() @ w_v, w_o, 2)
    left, s, right = np.linalg.svd((w_v @ w_o).numpy())
    expected = torch.from_numpy(left[:, :2] * s[:2] @ right[:2])
    torch.testing.assert_close(w_v @ c_v.t() @ back.t() @ w_o, expected)
