"""Weights of query rows: rows of padding and of instructions take no part in value, gradient or alpha."""

import dataclasses

import numpy as np
import oracle
import pytest
import torch
from random_captures import naive, random_capture

from dit_shd.attention.bias import DenseBias
from dit_shd.core.errors import UserError
from dit_shd.squeezing.divergence import attention_kl
from dit_shd.squeezing.squeeze import squeeze

B, N = 2, 7
WEIGHTS = torch.tensor([[1.0, 0, 2.5, 1, 0, 1, 0], [0, 1, 1, 0.5, 1, 1, 1]], dtype=torch.float64)
METHODS = ["pairwise", "joint", "per_query", "constant", "hard"]


def student_of(seed=5, bias=True, causal=False):
    student = random_capture(h=2, d=3, seed=seed, bias=bias, causal=causal)
    leaves = [student.query.requires_grad_(), student.key.requires_grad_()]
    if student.bias is not None:
        leaves.append(student.bias.leaves[0].requires_grad_())
    return student, leaves


def weighted_divergence(a, b, w, row_weight, measure):
    """The naive mathematics of each row, times its weight; mean over rows."""
    rows = [oracle.divergence(a[:, :, n : n + 1], b[:, :, n : n + 1], at(w, n), measure) for n in range(a.shape[2])]
    return (torch.stack(rows, 1) * row_weight).mean(1)


def at(w, n):
    return w[..., n : n + 1] if w.shape[3] > 1 else w


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("measure", ["kl", "cross_entropy", "mse"])
@pytest.mark.parametrize("backend", ["streamed", "fused"])
def test_value_and_gradients_are_the_oracles(method, measure, backend):
    if backend == "fused" and measure == "mse":
        pytest.skip("fused has no mse")
    teacher = random_capture(h=5, causal=True, bias=False)
    student, leaves = student_of(bias=backend == "streamed", causal=True)
    squeezed = squeeze(teacher, 2, method=method, row_weight=WEIGHTS)
    a, _ = naive(teacher)
    bias = None if student.bias is None else student.bias.leaves[0]
    b = oracle.maps(student.query, student.key, student.scale, bias, causal=True)
    want = weighted_divergence(a, b, squeezed.w, WEIGHTS, measure)
    if measure == "cross_entropy":  # KL and the squeezed teacher's entropy
        mixed = squeezed.mix(a)
        entropy = -torch.where(mixed > 0, mixed * mixed.clamp(min=1e-300).log(), 0.0).sum((1, 3))
        want = want + (entropy * WEIGHTS).mean(1)
    found = attention_kl(teacher, student, squeezed, 1.0, measure, backend, row_weight=WEIGHTS)
    torch.testing.assert_close(found, want, rtol=1e-9, atol=1e-11)
    upstream = torch.tensor([0.3, -2.0], dtype=torch.float64)
    wants, founds = (torch.autograd.grad(value, leaves, upstream) for value in (want, found))
    torch.testing.assert_close(founds, wants, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("backend", ["streamed", "fused"])
def test_weights_of_heads_are_those_of_the_rows_that_count(method, backend):
    """Weight 0 is as if the row were not there; any other factor for all rows changes nothing."""
    teacher = random_capture(h=5)
    for b in range(B):
        rows = WEIGHTS[b].nonzero()[:, 0]
        one = dataclasses.replace(
            teacher, query=teacher.query[b : b + 1], key=teacher.key[b : b + 1], value=teacher.value[b : b + 1]
        )
        counts = (WEIGHTS[b : b + 1] > 0) * 3.0
        found = squeeze(one, 2, method=method, backend=backend, row_weight=counts)
        want = squeeze(one.select(rows), 2, method=method, backend=backend)
        kept = found.weight[:, :, rows] if method == "per_query" else found.weight
        torch.testing.assert_close(kept, want.weight, rtol=1e-9, atol=1e-11)
        sums = torch.zeros(1, 2, N, dtype=torch.float64).index_add(1, found.group, found.weight.expand(1, 5, N))
        torch.testing.assert_close(sums, torch.ones_like(sums))
        if want.alpha is not None:
            torch.testing.assert_close(found.alpha, want.alpha, rtol=1e-9, atol=1e-11)
        if want.residual is not None:
            torch.testing.assert_close(found.residual, want.residual, rtol=1e-9, atol=1e-11)


def test_alpha_is_the_minimiser_over_the_rows_that_count():
    teacher = random_capture(h=2, bias=False)
    a, x = naive(teacher)
    found = squeeze(teacher, 1, clamp=False, row_weight=WEIGHTS).alpha
    root = WEIGHTS.sqrt()[:, :, None]
    for b in range(B):
        want = oracle.alpha_of_pair(root[b] * a[b, 0], x[b, 0], root[b] * a[b, 1], x[b, 1])
        assert float(found[b, 0]) == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize("backend", ["streamed", "fused"])
def test_rows_of_weight_0_do_not_reach_the_rest_whatever_they_hold(backend):
    """Queries of padding are anything: other numbers there leave every bit as it is."""
    teacher, (student, leaves) = random_capture(h=4), student_of(bias=backend == "streamed")

    def run(shift):
        at_padding = (WEIGHTS == 0)[:, None, :, None] * shift
        t = dataclasses.replace(teacher, query=teacher.query + at_padding)
        s = dataclasses.replace(student, query=student.query + at_padding)
        squeezed = squeeze(t, 2, backend=backend, row_weight=WEIGHTS)
        value = attention_kl(t, s, squeezed, 1.0, "kl", backend, row_weight=WEIGHTS)
        return squeezed.weight, value.detach(), *torch.autograd.grad(value.sum(), leaves)

    for before, after in zip(run(0.0), run(1.5)):
        assert torch.equal(before, after)
    assert not run(0.0)[2][WEIGHTS[:, None, :, None].expand(B, 2, N, 3) == 0].any()


def test_a_sample_without_a_row_that_counts_is_0():
    teacher, (student, leaves) = random_capture(h=4), student_of()
    nothing = torch.zeros(B, N)
    value = attention_kl(teacher, student, squeeze(teacher, 2, row_weight=nothing), row_weight=nothing)
    assert not value.any()
    assert not any(gradient.any() for gradient in torch.autograd.grad(value.sum(), leaves))


def test_weights_of_1_are_none_at_all():
    teacher, (student, _) = random_capture(h=5), student_of()
    ones = torch.ones(B, N)
    for method in METHODS:
        found, want = squeeze(teacher, 2, method=method, row_weight=ones), squeeze(teacher, 2, method=method)
        assert torch.equal(found.weight, want.weight)
        assert torch.equal(attention_kl(teacher, student, found, row_weight=ones), attention_kl(teacher, student, want))


def test_weights_of_another_shape_are_refused():
    teacher, (student, _) = random_capture(h=4), student_of()
    with pytest.raises(ValueError, match=r"squeeze: row_weight: wanted a tensor \[b,n\] = \[2,7\], found \[2, 5\]"):
        squeeze(teacher, 2, row_weight=torch.ones(2, 5))
    with pytest.raises(ValueError, match=r"attention_kl: row_weight: wanted a tensor \[b,n\] = \[2,7\], found \[7\]"):
        attention_kl(teacher, student, squeeze(teacher, 2), row_weight=torch.ones(7))


def test_a_bias_that_learns_gets_no_gradient_from_rows_of_weight_0():
    teacher = random_capture(h=4)
    bias = torch.zeros(1, 2, N, N, dtype=torch.float64, requires_grad=True)
    student = dataclasses.replace(random_capture(h=2, seed=3), bias=DenseBias(bias))
    weight = torch.ones(B, N, dtype=torch.float64)
    weight[:, 3] = 0
    attention_kl(teacher, student, squeeze(teacher, 2), row_weight=weight).sum().backward()
    assert bias.grad is not None
    assert not bias.grad[:, :, 3].any()
    assert bias.grad[:, :, 2].any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -1.0])
def test_weights_that_are_none_are_refused(bad):
    """They had counted as 0, and their rows had been left out without a word."""
    teacher, student = random_capture(h=4), random_capture(h=2)
    weights = WEIGHTS.clone()
    weights[0, 1] = bad
    with pytest.raises(ValueError, match="squeeze: row_weight: wanted finite numbers of 0 or more"):
        squeeze(teacher, 2, row_weight=weights)
    squeezed = squeeze(teacher, 2)
    for given, words in ((weights, "finite numbers of 0 or more"), (weights.numpy(), "a tensor .*, found ndarray")):
        with pytest.raises(ValueError, match=f"attention_kl: row_weight: wanted {words}"):
            attention_kl(teacher, student, squeezed, row_weight=given)
    assert squeeze(teacher, np.int64(2)).heads == 2
    for heads, shown in ((2.0, r"2\.0"), (torch.zeros(2), "tensor"), (None, "None")):
        with pytest.raises(UserError, match=rf"wanted 1 to 4 student heads for a teacher of 4, found {shown}"):
            squeeze(teacher, heads)
