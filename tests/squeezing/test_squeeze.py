"""Laws of the squeeze, against the naive float64 mathematics of oracle.py."""

import dataclasses

import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_captures import naive, random_capture

from dit_shd.attention.bias import DenseBias
from dit_shd.attention.capture import Capture
from dit_shd.core.errors import UserError
from dit_shd.squeezing.plans import contiguous
from dit_shd.squeezing.squeeze import squeeze


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.data())
def test_contiguous_plans_partition_evenly(h, data):
    g = data.draw(st.integers(1, h))
    plan = contiguous(h, g)
    assert sum(plan, ()) == tuple(range(h))
    assert len(plan) == g
    assert max(map(len, plan)) - min(map(len, plan)) <= 1


def test_plan_of_the_papers_example():
    assert [len(p) for p in contiguous(16, 6)] == [3, 3, 3, 3, 2, 2]


@pytest.mark.parametrize(("h", "g"), [(4, 2), (5, 2), (6, 1), (7, 3), (4, 4)])
@pytest.mark.parametrize(("n", "m", "causal"), [(7, 7, False), (6, 9, False), (8, 8, True)])
@pytest.mark.parametrize("chunk_mib", [64, 1e-3])
def test_pairwise_equals_the_oracle(h, g, n, m, causal, chunk_mib):
    capture = random_capture(h=h, n=n, m=m, causal=causal, seed=h * 10 + g)
    a, x = naive(capture)
    plan = contiguous(h, g)
    w, alpha = oracle.merge_progressively(a, x, plan)
    found = squeeze(capture, g, chunk_mib=chunk_mib)
    torch.testing.assert_close(found.w[..., 0], w, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.alpha, alpha, rtol=1e-9, atol=1e-9)
    expected = oracle.residual(a, x, w, plan)
    torch.testing.assert_close(found.residual, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("method", ["hard", "constant"])
def test_the_default_device_takes_no_part(method):
    """As a script sets torch.set_default_device("cuda"); weights are drawn on the CPU."""
    capture = random_capture(h=5)
    want = squeeze(capture, 2, method=method).weight
    with torch.device("meta"):
        weight = squeeze(capture, 2, method=method).weight
    torch.testing.assert_close(weight, want, rtol=0, atol=0)


def test_explicit_plan_and_its_order():
    capture = random_capture(h=5, seed=3)
    a, x = naive(capture)
    plan = [[3, 0, 4], [1, 2]]
    w, _ = oracle.merge_progressively(a, x, plan)
    torch.testing.assert_close(squeeze(capture, 2, plan).w[..., 0], w, rtol=1e-9, atol=1e-9)


def test_float32_agrees_with_float64():
    fine = random_capture(h=6, n=40, m=40, d=8, seed=5)
    bias = DenseBias(fine.bias.leaves[0].float())
    coarse = Capture(*(x.float() for x in (fine.query, fine.key, fine.value)), fine.scale, bias, out=fine.out.float())
    torch.testing.assert_close(squeeze(coarse, 2).weight.double(), squeeze(fine, 2).weight, rtol=1e-4, atol=1e-5)


def test_weights_sum_to_one_and_are_not_negative():
    found = squeeze(random_capture(h=7), 3)
    torch.testing.assert_close(found.w.sum(2), torch.ones_like(found.w.sum(2)))
    assert found.w.min() >= 0
    mixed = found.mix(random_capture(h=7).map())
    torch.testing.assert_close(mixed.sum(-1), torch.ones_like(mixed.sum(-1)))


def test_swapping_a_pair_gives_one_minus_alpha():
    capture = random_capture(h=2, bias=False)
    swapped = dataclasses.replace(
        capture,
        query=capture.query.flip(1),
        key=capture.key.flip(1),
        value=capture.value.flip(1),
        out=capture.out.flip(0),
    )
    torch.testing.assert_close(squeeze(swapped, 1).alpha, 1 - squeeze(capture, 1).alpha)


def test_alpha_minimises_the_objective():
    capture = random_capture(h=2, b=3)
    a, x = naive(capture)
    target = (a @ x).sum(1)
    both = x.sum(1)
    alpha = squeeze(capture, 1, clamp=False).alpha

    def objective(alpha):
        mixed = alpha[..., None] * a[:, 0] + (1 - alpha[..., None]) * a[:, 1]
        return (mixed @ both - target).square().sum((1, 2))

    best = objective(alpha)
    for step in (-1e-3, 1e-3):
        assert bool((objective(alpha + step) > best).all())


def test_identical_maps_and_opposite_values_give_one_half():
    capture = random_capture(h=2, bias=False)
    same = dataclasses.replace(
        capture,
        query=capture.query[:, :1].expand(-1, 2, -1, -1),
        key=capture.key[:, :1].expand(-1, 2, -1, -1),
    )
    assert torch.all(squeeze(same, 1).alpha == 0.5)
    value = torch.cat([capture.value[:, :1], -capture.value[:, :1]], dim=1)
    opposite = dataclasses.replace(capture, value=value, out=capture.out[:1].expand(2, -1, -1))
    assert torch.all(squeeze(opposite, 1).alpha == 0.5)


def test_alpha_leaves_the_interval_unless_clamped():
    """Of many random pairs of heads some want alpha outside [0, 1]; the clamp is reported, and only there acts."""
    many = random_capture(b=400, h=2, n=2, m=2, d=1, e=1, seed=1)
    free, kept = squeeze(many, 1, clamp=False), squeeze(many, 1)
    outside = (free.alpha < 0) | (free.alpha > 1)
    assert 0 < outside.sum() < 400
    assert torch.equal(kept.clamped, outside)
    assert torch.equal(kept.alpha, free.alpha.clamp(0, 1))


def test_equal_head_counts_are_the_identity():
    found = squeeze(random_capture(h=3), 3)
    torch.testing.assert_close(found.w[..., 0], torch.eye(3, dtype=torch.float64).expand(2, 3, 3))
    assert found.residual.abs().max() == 0


def test_constant_and_hard():
    capture = random_capture(h=5)
    constant = squeeze(capture, 2, method="constant")
    want = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 0, 1.5, 1.5]], dtype=torch.float64) / 3
    torch.testing.assert_close(constant.w[0, :, :, 0], want)
    hard = squeeze(capture, 2, method="hard", seed=4)
    assert hard.w.sum() == 2 * 2
    assert set(hard.w.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(hard.w, squeeze(capture, 2, method="hard", seed=4).w)
    assert any(not torch.equal(hard.w, squeeze(capture, 2, method="hard", seed=s).w) for s in range(5, 10))
    pairs = squeeze(random_capture(h=12), 6, method="hard", seed=4).w[0, :, ::2].sum((1, 2))
    assert 0 < pairs.sum() < 6  # each pair has a draw of its own


def test_no_gradient_flows_through_the_squeeze():
    capture = random_capture()
    live = dataclasses.replace(capture, query=capture.query.requires_grad_(), out=capture.out.requires_grad_())
    assert not squeeze(live, 2).weight.requires_grad


def test_fully_masked_rows_do_not_poison_alpha():
    capture = random_capture(h=2, bias=False)
    mask = torch.ones(1, 1, 7, 7, dtype=torch.bool)
    mask[:, :, 3] = False
    masked = dataclasses.replace(capture, bias=DenseBias(mask))
    assert torch.isfinite(squeeze(masked, 1).alpha).all()


@pytest.mark.parametrize("heads", [0, 5, -1])
def test_impossible_head_counts_are_refused(heads):
    with pytest.raises(UserError, match=r"1 to 4 student heads"):
        squeeze(random_capture(h=4), heads)


@pytest.mark.parametrize("plan", [[[0, 1], [2]], [[0, 1], [2, 2]], [[0, 1, 2, 3], []], [[0, 1], [2, 4]]])
def test_plans_that_are_no_partition_are_refused(plan):
    with pytest.raises(UserError, match="each of the heads"):
        squeeze(random_capture(h=4), 2, plan)


def test_a_teacher_with_nan_is_refused():
    capture = random_capture()
    capture.value[0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="wanted finite q, k and v"):
        squeeze(capture, 2)


@pytest.mark.parametrize("method", ["pairwise", "joint", "per_query"])
def test_autocast_of_a_training_step_takes_no_part(method):
    fine = random_capture(h=6, n=40, m=40, d=8, bias=False)
    q, k, v, out = (x.float() for x in (fine.query, fine.key, fine.value, fine.out))
    capture = Capture(q, k, v, fine.scale, out=out)
    want = squeeze(capture, 2, method=method)
    with torch.autocast("cpu", torch.bfloat16):
        found = squeeze(capture, 2, method=method)
    assert torch.equal(found.weight, want.weight) and torch.equal(found.residual, want.residual)


def test_the_residual_of_weights_by_row_is_the_oracles():
    capture, plan = random_capture(h=7), [[0, 1, 2], [3, 4], [5, 6]]
    a, x = naive(capture)
    found = squeeze(capture, 3, method="per_query")
    merged = found.mix(a)
    for g, heads in enumerate(plan):
        both, goal = x[:, heads].sum(1), (a[:, heads] @ x[:, heads]).sum(1)
        want = (merged[:, g] @ both - goal).flatten(1).norm(dim=1) / goal.flatten(1).norm(dim=1)
        torch.testing.assert_close(found.residual[:, g], want, rtol=1e-7, atol=1e-9)


def test_the_layers_own_result_serves_sample_by_sample():
    capture = random_capture(b=3, h=5)
    given_result = dataclasses.replace(capture, mixed=capture.map() @ capture.value)
    torch.testing.assert_close(squeeze(given_result, 2, chunk_mib=1e-3).residual, squeeze(capture, 2).residual)


def test_some_rows_are_mixed_by_their_own_weights():
    capture = random_capture(h=5)
    found, maps = squeeze(capture, 2, method="per_query"), capture.map()
    some = slice(2, 5)
    torch.testing.assert_close(found.mix(maps[:, :, some], some), found.mix(maps)[:, :, some])


def test_maps_that_differ_by_rounding_alone_share_alike():
    capture = random_capture(h=2, bias=False, n=40, m=40)
    q, k, v, out = (x.float() for x in (capture.query, capture.key, capture.value, capture.out))
    same = Capture(q[:, :1].repeat(1, 2, 1, 1), k[:, :1].repeat(1, 2, 1, 1), v, capture.scale, out=out)
    same.query[:, 1] *= 1 + 2e-7
    assert (squeeze(same, 1).alpha == 0.5).all()
