"""align_to_distill against whole maps of all layers."""

from dataclasses import replace

import loss_checks as checks
import oracle as naive
import pytest
import torch

from dit_shd.core.errors import UserError
from dit_shd.distillation.relations import row_sample


def maps(layers):
    found = []
    for c in layers.values():
        found.append(naive.maps(c.query, c.key, c.scale, None if c.bias is None else c.bias.leaves[0], c.causal))
    return torch.cat(found, 1)


def _over_all(target, mixed, kept, weight):
    """KL of two softmaxes over the entries of a map that are seen, each as likely as its row weighs."""
    likely = weight[:, None].expand_as(kept)[kept].log()
    p, q = (target[kept] + likely).log_softmax(0), (mixed[kept] + likely).log_softmax(0)
    return (p.exp() * (p - q)).sum()


def oracle(loss, s, t, over, causal=False, weights=None):
    """The definition [b], one map of the teacher at a time."""
    a, b = maps(t), maps(s)
    n = a.shape[2]
    rows = torch.ones(a.shape[0], n, dtype=torch.float64) if weights is None else weights
    total = 0.0
    for i in range(a.shape[1]):
        mixed = sum(loss.align.weight[i, j] * b[:, j] for j in range(b.shape[1]))
        if causal:
            mixed = mixed.masked_fill(torch.ones(n, n, dtype=torch.bool).triu(1), float("-inf"))
        if over == "keys":
            terms = a[:, i] * (a[:, i].log() - mixed.log_softmax(2))
            total = total + (terms.nan_to_num(0).sum(2) * rows).sum(1) / n
        else:
            hidden = torch.ones(n, n, dtype=torch.bool).triu(1) if causal else torch.zeros(n, n, dtype=torch.bool)
            kept = [~hidden & (row[:, None] > 0) for row in rows]
            total = total + torch.stack([_over_all(*one) for one in zip(a[:, i], mixed, kept, rows)])
    return total / a.shape[1]


@pytest.mark.parametrize("over", ["keys", "all"])
@pytest.mark.parametrize(("causal", "mib"), [(False, 64), (True, 1e-4)])
def test_value_and_gradients_are_the_definition(over, causal, mib):
    """Of 2 layers of 2 heads and 3 layers of 3, in one tile and row by row."""
    s, t = checks.captures(2, grad=True, causal=causal), checks.captures(3, depth=3, seed=1, causal=causal)
    loss = checks.build("align_to_distill", s, t, over=over, chunk_mib=mib)
    assert loss.align.weight.shape == (9, 4)
    checks.same(loss, s, t, lambda: oracle(loss, s, t, over, causal), rtol=1e-8)


@pytest.mark.parametrize("over", ["keys", "all"])
def test_rows_have_the_weights_of_the_batch(over):
    s, t = checks.captures(2, grad=True), checks.captures(3, seed=1)
    weights = torch.tensor([[1, 0, 2, 1, 0, 1, 1]] * 2, dtype=torch.float64)
    loss = checks.build("align_to_distill", s, t, over=over, chunk_mib=1e-4)
    given = checks.batch(weights=weights)
    checks.same(loss, s, t, lambda: oracle(loss, s, t, over, weights=weights), given, rtol=1e-8)


@pytest.mark.parametrize("causal", [False, True])
def test_drawn_rows_are_the_mean_over_these_rows(causal):
    """Of all layers the same, other ones in another step, with the batch's weights."""
    s, t = checks.captures(2, grad=True, causal=causal), checks.captures(3, seed=1, causal=causal)
    loss = checks.build("align_to_distill", s, t, rows=0.4, seed=5)
    given = checks.batch(weights=torch.tensor([[1, 2, 3, 4, 5, 6, 7], [7, 6, 5, 0, 3, 2, 1]], dtype=torch.float64))
    drawn = row_sample(0.4, 7, 5, "align_to_distill", given)
    assert len(drawn) == 3
    weights = torch.zeros_like(given.weights)
    weights[:, drawn] = given.weights[:, drawn] * 7 / 3
    checks.same(loss, s, t, lambda: oracle(loss, s, t, "keys", causal, weights), given, rtol=1e-8)
    steps = {tuple(row_sample(0.4, 7, 5, "align_to_distill", checks.batch(step=step)).tolist()) for step in range(20)}
    assert len(steps) > 5
    assert {row for rows in steps for row in rows} == set(range(7))


@pytest.mark.parametrize("over", ["keys", "all"])
def test_rows_whose_keys_are_all_masked_take_no_part(over):
    s, t = checks.captures(2, grad=True, bias=False), checks.captures(3, seed=1, bias=False)
    loss = checks.build("align_to_distill", s, t, over=over)
    seen = torch.ones(7, 7, dtype=torch.bool)
    seen[2] = False
    masked = {name: replace(one, bias=seen) for name, one in t.items()}
    weights = torch.ones(2, 7, dtype=torch.float64)
    weights[:, 2] = 0
    checks.same(loss, s, masked, lambda: oracle(loss, s, t, over, weights=weights), rtol=1e-8)


@pytest.mark.parametrize("over", ["keys", "all"])
@pytest.mark.parametrize("causal", [False, True])
def test_whatever_a_mask_is_made_of_its_keys_take_no_part(over, causal):
    """Of padding, by one sample alone."""
    s, t = (checks.captures(h, bias=False, causal=causal) for h in (2, 3))
    loss, values = checks.build("align_to_distill", s, t, over=over), []
    lowest = [torch.finfo(dtype).min for dtype in (torch.float64, torch.float32, torch.float16)]
    for low in (float("-inf"), *lowest, -1e4):
        mask = torch.zeros(2, 1, 1, 7, dtype=torch.float64)
        mask[0, ..., 4:] = low
        masked = [{name: replace(one, bias=mask) for name, one in side.items()} for side in (s, t)]
        values.append(checks.term(loss, *masked).value)
    torch.testing.assert_close(values[1:], [values[0]] * 4, rtol=1e-6, atol=0)


def test_what_does_not_fit_is_refused():
    s, t = checks.captures(2), checks.captures(3)
    uneven = {**s, "b.1": checks.captures(2, n=5, m=5)["b.1"]}
    with pytest.raises(
        UserError, match=r"as many tokens in all layers of the student, found \(7, 7\) in b\.0 and \(5, 5\)"
    ):
        checks.build("align_to_distill", uneven, t)
    loss = checks.build("align_to_distill", s, t)
    with pytest.raises(UserError, match=r"has no mixture of 4 maps for 9; .* distiller\.build"):
        checks.term(loss, s, checks.captures(3, depth=3))
    with pytest.raises(UserError, match="wanted the same samples and tokens"):
        checks.term(loss, s, checks.captures(3, n=5, m=5))
    with pytest.raises(UserError, match="over: wanted keys or all, found 'rows'"):
        checks.build("align_to_distill", over="rows")
    with pytest.raises(UserError, match="rows: wanted a share above 0 and at most 1, found 0"):
        checks.build("align_to_distill", rows=0.0)
    with pytest.raises(UserError, match=r"rows: over: all is one distribution over all rows, found 0\.5"):
        checks.build("align_to_distill", over="all", rows=0.5)


@pytest.mark.parametrize("over", ["keys", "all"])
def test_a_sample_without_any_weight_has_no_loss(over):
    s, t = checks.captures(2, grad=True, n=7, m=7), checks.captures(4, seed=5, n=7, m=7)
    weights = torch.ones(2, 7, dtype=torch.float64)
    weights[1] = 0
    given = checks.batch(weights=weights)
    loss = checks.build("align_to_distill", s, t, given, over=over)
    value = checks.term(loss, s, t, given).value
    assert value[0] != 0 and value[1] == 0
    value.sum().backward()
    learning = [*checks.leaves(s), *loss.parameters()]
    assert all(x.grad is None or bool(x.grad.isfinite().all()) for x in learning)
