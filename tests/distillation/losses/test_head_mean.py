"""head_mean against whole maps."""

import math

import loss_checks as checks
import oracle as naive
import pytest
import torch
from loss_checks import divergence, maps

from dit_shd.attention.bias import DenseBias
from dit_shd.attention.capture import Capture
from dit_shd.core.errors import UserError


def oracle(s, t, measure, weights=None):
    total = 0.0
    for name in s:
        a, b = maps(t[name]).mean(1), maps(s[name]).mean(1)
        rows = divergence(a, b) if measure == "kl" else (a - b).square().sum(2)
        total = total + (rows if weights is None else rows * weights).mean(1)
    return total


@pytest.mark.parametrize(("measure", "mib"), [("kl", 64), ("kl", 1e-4), ("mse", 1e-4)])
@pytest.mark.parametrize("causal", [False, True])
def test_value_and_gradients_are_the_definition(measure, mib, causal):
    s, t = checks.captures(2, d=4, grad=True, causal=causal), checks.captures(5, d=5, seed=1, causal=causal)
    loss = checks.build("head_mean", measure=measure, chunk_mib=mib)
    checks.same(loss, s, t, lambda: oracle(s, t, measure), rtol=1e-8)


def test_rows_have_the_weights_of_the_batch():
    s, t = checks.captures(2, grad=True), checks.captures(4, seed=1)
    weights = torch.tensor([[1, 0, 2, 1, 0, 1, 1]] * 2, dtype=torch.float64)
    loss = checks.build("head_mean", chunk_mib=1e-4)
    checks.same(loss, s, t, lambda: oracle(s, t, "kl", weights), checks.batch(weights=weights), rtol=1e-8)


@pytest.mark.parametrize("causal", [False, True])
def test_the_mean_may_be_of_scores(causal):
    s, t = checks.captures(2, depth=1, grad=True, causal=causal), checks.captures(4, depth=1, seed=1, causal=causal)

    def want():
        a, b = (
            naive.scores(c["b.0"].query, c["b.0"].key, c["b.0"].scale, c["b.0"].bias.leaves[0], causal)
            .mean(1)
            .softmax(2)
            for c in (t, s)
        )
        return divergence(a, b).mean(1)

    checks.same(checks.build("head_mean", of="scores"), s, t, want, rtol=1e-8)


@pytest.mark.parametrize("of", ["maps", "scores"])
@pytest.mark.parametrize("gap", [80.0, 100.0, 500.0])
def test_there_is_a_gradient_where_the_student_is_most_wrong(of, gap):
    """In float32 exp(-104) is 0; uniform teacher, scores 0 and -gap: the gradient of each of two heads is -+1/4."""
    key = torch.tensor([0.0, -gap]).view(1, 1, 2, 1).repeat(1, 2, 1, 1).requires_grad_()
    student = {"b.0": Capture(torch.ones(1, 2, 1, 1), key, torch.zeros(1, 2, 2, 1), 1.0)}
    teacher = {"b.0": Capture(torch.zeros(1, 2, 1, 1), torch.zeros(1, 2, 2, 1), torch.zeros(1, 2, 2, 1), 1.0)}
    value = checks.term(checks.build("head_mean", student, teacher, of=of), student, teacher).value.sum()
    value.backward()
    assert value.item() == pytest.approx(gap / 2 - math.log(2), rel=1e-5)
    torch.testing.assert_close(key.grad[0, :, :, 0], torch.tensor([[0.25, -0.25]] * 2))


@pytest.mark.parametrize("mask", [float("-inf"), torch.finfo(torch.float32).min])
@pytest.mark.parametrize("of", ["maps", "scores"])
def test_a_key_that_the_student_masks_is_finite(of, mask):
    bias = DenseBias(torch.tensor([0.0, mask, 0.0]).expand(1, 1, 1, 3))
    query = torch.randn(1, 2, 1, 4, requires_grad=True)
    rest = torch.randn(1, 2, 3, 4), torch.randn(1, 2, 3, 4), 0.5
    student, teacher = {"b.0": Capture(query, *rest, bias)}, {"b.0": Capture(query.detach(), *rest)}
    value = checks.term(checks.build("head_mean", student, teacher, of=of), student, teacher).value.sum()
    value.backward()
    assert 0 < value.item() < 100 and torch.isfinite(query.grad).all()


def test_what_makes_no_sense_is_refused():
    with pytest.raises(UserError, match="measure: wanted kl or mse, found 'l1'"):
        checks.build("head_mean", measure="l1")
