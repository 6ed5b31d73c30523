"""self_correlation against whole n x n matrices; both ways to compute it; what it does not see."""

import loss_checks as checks
import pytest
import torch


def oracle(s, t, weights=None):
    """The definition [b] with whole matrices."""
    total = 0.0
    for name in s:
        found = []
        for x in (s[name], t[name]):
            x = x / (x**2).sum(2, keepdim=True).sqrt()
            c = torch.einsum("bne,bme->bnm", x, x)
            if weights is not None:
                c = c * (weights[:, :, None] > 0) * (weights[:, None] > 0)
            found.append(c.flatten(1))
        a, b = found
        total = total + 1 - (a * b).sum(1) / ((a**2).sum(1) * (b**2).sum(1)).sqrt()
    return total


@pytest.mark.parametrize(("n", "width", "other"), [(7, 4, 6), (4, 5, 6), (5, 3, 9)])
def test_value_and_gradients_are_the_definition(n, width, other):
    """More tokens than channels, fewer, and in between."""
    s, t = checks.tokens(width, n=n, grad=True), checks.tokens(other, n=n, seed=1)
    checks.same(checks.build("self_correlation"), s, t, lambda: oracle(s, t))


def test_tokens_without_weight_take_no_part():
    s, t = checks.tokens(3, grad=True), checks.tokens(4, seed=1)
    weights = torch.tensor([[1, 1, 0, 1, 0, 1, 1], [1, 1, 1, 1, 1, 1, 0]], dtype=torch.float64)
    checks.same(checks.build("self_correlation"), s, t, lambda: oracle(s, t, weights), checks.batch(weights=weights))


def test_rotated_and_scaled_features_are_the_same():
    t = checks.tokens(6)
    turn = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    s = {name: 3 * x @ turn for name, x in t.items()}
    assert checks.term(checks.build("self_correlation"), s, t).value.abs().max() < 1e-12


def test_a_sample_without_any_weight_has_no_loss():
    """Such as a document whose prompt fills its length: nan once made the whole step bad."""
    s, t = checks.tokens(3, grad=True), checks.tokens(4, seed=1)
    weights = torch.ones(2, 7, dtype=torch.float64)
    weights[1] = 0
    value = checks.term(checks.build("self_correlation"), s, t, checks.batch(weights=weights)).value
    assert value[0] > 0 and value[1] == 0
    value.sum().backward()
    assert all(bool(x.grad.isfinite().all()) and not x.grad[1].any() for x in s.values())
