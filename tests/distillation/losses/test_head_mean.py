"""head_mean against whole maps."""

import loss_checks as checks
import oracle as naive
import pytest
import torch

from dit_shd.core.errors import UserError


def divergence(a, b):
    """KL of every row; 0 log 0 is 0."""
    one = torch.ones(())
    terms = torch.where(a > 0, a, one).log() - torch.where(a > 0, b, one).log()
    return (a * terms).sum(-1)


def maps(c):
    return naive.maps(c.query, c.key, c.scale, None if c.bias is None else c.bias.leaves[0], c.causal)


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


def test_what_makes_no_sense_is_refused():
    with pytest.raises(UserError, match="measure: wanted kl or mse, found 'l1'"):
        checks.build("head_mean", measure="l1")
