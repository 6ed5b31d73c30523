"""minilmv2 against whole relations in heads of their own."""

import loss_checks as checks
import pytest
import torch

from dit_shd.core.errors import UserError


def relation(x, heads):
    """softmax(x x^T / sqrt d_r) of every relation head, one by one [b,r,n,n]."""
    h, d = x.shape[1], x.shape[3]
    flat = torch.cat([x[:, i] for i in range(h)], 2)
    size = h * d // heads
    parts = [flat[..., i * size : (i + 1) * size] for i in range(heads)]
    return torch.stack([(p @ p.transpose(1, 2) / size**0.5).softmax(2) for p in parts], 1)


def oracle(s, t, heads, names=("b.1",)):
    total = 0.0
    for name in names:
        for field in ("query", "key", "value"):
            a, b = (relation(getattr(x[name], field), heads) for x in (t, s))
            total = total + (a * (a.log() - b.log())).sum(3).mean((1, 2))
    return total


@pytest.mark.parametrize(("options", "heads"), [({}, 2), ({"relation_heads": 4}, 4), ({"relation_heads": 1}, 1)])
def test_value_and_gradients_are_the_definition(options, heads):
    """Of 2 heads of 6 and 4 of 5, also with a bias, which plays no part."""
    s, t = checks.captures(2, d=6, grad=True), checks.captures(4, d=5, seed=1)
    checks.same(checks.build("minilmv2", **options), s, t, lambda: oracle(s, t, heads), rtol=1e-8)


def test_any_layers_can_be_paired():
    s, t = checks.captures(2, d=6, grad=True), checks.captures(4, depth=3, d=5, seed=1)
    loss = checks.build("minilmv2", layers={"b.0": "b.2", "b.1": "b.1"})
    paired = {"b.0": t["b.2"], "b.1": t["b.1"]}
    checks.same(loss, s, t, lambda: oracle(s, paired, 2, ("b.0", "b.1")), rtol=1e-8)


def test_what_does_not_fit_is_refused():
    s, t = checks.captures(2, d=6), checks.captures(4, d=5)
    with pytest.raises(UserError, match=r"divisor of both widths, found 3 for 12 \(query of b\.1\) and 20"):
        checks.term(checks.build("minilmv2", relation_heads=3), s, t)
    with pytest.raises(UserError, match="relation_heads: wanted 1 or more, found 0"):
        checks.build("minilmv2", relation_heads=0)
    with pytest.raises(UserError, match=r"found \(2, 7, 7\) in b\.1 and \(2, 5, 5\) in b\.1 of the teacher"):
        checks.term(checks.build("minilmv2"), s, checks.captures(4, n=5, m=5))
