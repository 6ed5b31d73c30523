"""minilm against whole maps and relations."""

from dataclasses import replace

import loss_checks as checks
import pytest
import torch
from loss_checks import divergence, maps

from dit_shd.core.errors import UserError


def kl(t, s):
    """Mean over heads and query rows [b]."""
    return divergence(t, s).mean((1, 2))


def relation(x, seen=None):
    scores = torch.einsum("bhnd,bhmd->bhnm", x, x) / x.shape[3] ** 0.5
    return (scores if seen is None else scores.masked_fill(~seen[:, None, None], float("-inf"))).softmax(3)


def oracle(s, t, names):
    return sum(kl(maps(t[n]), maps(s[n])) + kl(relation(t[n].value), relation(s[n].value)) for n in names)


@pytest.mark.parametrize(("layers", "causal"), [("last", False), ("sections", True)])
def test_value_and_gradients_are_the_definition(layers, causal):
    s, t = checks.captures(3, d=4, grad=True, causal=causal), checks.captures(3, d=5, seed=1, causal=causal)
    loss = checks.build("minilm", layers=layers)
    checks.same(loss, s, t, lambda: oracle(s, t, ["b.1"] if layers == "last" else list(s)), rtol=1e-8)


def test_a_student_that_is_its_teacher_has_nothing_to_learn():
    t = checks.captures(3)
    s = {name: one.detach() for name, one in t.items()}
    assert checks.term(checks.build("minilm"), s, t).value.abs().max() < 1e-12


def test_tokens_without_weight_are_no_rows_and_no_values():
    s, t = checks.captures(3, depth=1, grad=True), checks.captures(3, depth=1, seed=1)
    weights = torch.tensor([[1, 0, 1, 1, 0, 1, 1]] * 2, dtype=torch.float64)

    def want():
        rows = weights[:, None, :]
        pairs = [(maps(t["b.0"]), maps(s["b.0"]))]
        pairs.append(tuple(relation(c["b.0"].value, weights > 0) for c in (t, s)))
        return sum((divergence(a, b) * rows).mean((1, 2)) for a, b in pairs)

    checks.same(checks.build("minilm"), s, t, want, checks.batch(weights=weights), rtol=1e-8)


def test_other_heads_are_refused_with_the_losses_that_take_them():
    with pytest.raises(UserError, match=r"found 2 in b\.1 and 4 in b\.1 of the teacher; any number: .*shd") as e:
        checks.term(checks.build("minilm"), checks.captures(2), checks.captures(4))
    assert "minilmv2" in str(e.value) and "head_mean" in str(e.value) and "tinybert" not in str(e.value)


@pytest.mark.parametrize("name", ["minilm", "minilmv2"])
def test_grouped_keys_are_one_function_repeated_or_not(name):
    """transformers repeats them where a batch has a mask; micro batches with and without one were two functions."""

    def grouped(seed):
        return {
            n: replace(c, key=c.key[:, ::2], value=c.value[:, ::2]) for n, c in checks.captures(4, seed=seed).items()
        }

    def repeated(captures):
        of = {n: [x.repeat_interleave(2, 1) for x in (c.key, c.value)] for n, c in captures.items()}
        return {n: replace(c, key=of[n][0], value=of[n][1]) for n, c in captures.items()}

    s, t = grouped(0), grouped(1)
    values = [checks.term(checks.build(name), a, b).value for a in (s, repeated(s)) for b in (t, repeated(t))]
    for value in values:
        torch.testing.assert_close(value, values[0])
