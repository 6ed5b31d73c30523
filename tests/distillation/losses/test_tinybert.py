"""tinybert against whole scores."""

import loss_checks as checks
import oracle as naive
import pytest
import torch

from dit_shd.attention.bias import DenseBias
from dit_shd.attention.capture import Capture
from dit_shd.core.errors import UserError


def scores(c):
    return naive.scores(c.query, c.key, c.scale, None if c.bias is None else c.bias.leaves[0], c.causal)


def oracle(s, t, mean=False):
    total = 0.0
    for name in s:
        a, b = scores(s[name]), scores(t[name])
        if mean:
            a, b = a.mean(1, keepdim=True), b.mean(1, keepdim=True)
        hidden = torch.minimum(a, b) < -1e300
        total = total + (a.masked_fill(hidden, 0) - b.masked_fill(hidden, 0)).square().mean((1, 2, 3))
    return total


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mib", [64, 1e-4])
def test_value_and_gradients_are_the_definition(causal, mib):
    """With other head widths and a learned bias, in one tile and row by row."""
    s, t = checks.captures(3, d=4, grad=True, causal=causal), checks.captures(3, d=5, seed=1, causal=causal)
    checks.same(checks.build("tinybert", chunk_mib=mib), s, t, lambda: oracle(s, t))


def test_the_mean_of_heads_takes_any_number():
    s, t = checks.captures(2, grad=True), checks.captures(4, seed=1)
    checks.same(checks.build("tinybert", heads="mean"), s, t, lambda: oracle(s, t, mean=True))


def test_masked_keys_count_as_nothing():
    s, t = checks.captures(2, depth=1, grad=True, bias=False), checks.captures(2, depth=1, seed=1)
    t["b.0"].bias.leaves[0][..., 2:4] = float("-inf")
    checks.same(checks.build("tinybert"), s, t, lambda: oracle(s, t))
    low = {"b.0": t["b.0"]}
    want = checks.term(checks.build("tinybert"), s, low).value
    for lowest in (torch.finfo(torch.float64).min, torch.finfo(torch.float32).min, -1e4):
        t["b.0"].bias.leaves[0][..., 2:4] = lowest
        torch.testing.assert_close(checks.term(checks.build("tinybert"), s, t).value, want)
    mean = checks.build("tinybert", heads="mean")
    low = checks.term(mean, s, t).value
    t["b.0"].bias.leaves[0][..., 2:4] = float("-inf")
    torch.testing.assert_close(checks.term(mean, s, t).value, low)
    assert isinstance(t["b.0"].bias, DenseBias)


@pytest.mark.parametrize("lowest", [float("-inf"), torch.finfo(torch.float64).min, None])
def test_keys_that_the_student_alone_hides_count_as_nothing(lowest):
    """By its bias, or because it is causal."""
    s, t = checks.captures(2, grad=True, causal=lowest is None), checks.captures(2, seed=1)
    if lowest is not None:
        s["b.1"].bias.leaves[0].data[..., 2:4] = lowest
    checks.same(checks.build("tinybert"), s, t, lambda: oracle(s, t))


def test_other_heads_are_refused_with_the_losses_that_take_them():
    with pytest.raises(
        UserError, match=r"found 2 in b\.0 and 4 in b\.0 of the teacher; any number: heads: mean, or .*shd"
    ):
        checks.term(checks.build("tinybert"), checks.captures(2), checks.captures(4))
    with pytest.raises(UserError, match="heads: wanted each or mean, found 'sum'"):
        checks.build("tinybert", heads="sum")


def test_a_key_that_one_head_hides_is_in_no_mean_of_heads():
    bias = torch.zeros(1, 2, 3, 3, dtype=torch.float64)
    bias[0, 0, :, 1] = -10_000
    draw = torch.Generator().manual_seed(0)
    x, y = (torch.randn(1, 2, 3, 4, generator=draw, dtype=torch.float64) for _ in range(2))
    s, t = {"a": Capture(x, x, x, 0.5)}, {"a": Capture(y, y, y, 0.5, DenseBias(bias))}
    gap = (0.5 * (x @ x.mT - y @ y.mT)).mean(1).square()
    gap[:, :, 1] = 0
    found = checks.term(checks.build("tinybert", heads="mean"), s, t).value
    torch.testing.assert_close(found, gap.mean((1, 2)))
