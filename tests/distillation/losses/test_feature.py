"""feature against its definition: value and gradients, projectors, layer norm, weights of tokens, refusals."""

import loss_checks as checks
import pytest
import torch

from dit_shd.core.errors import UserError


def oracle(loss, s, t, kind, norm, weights=None):
    """The definition [b], token by token."""
    p, total = dict(loss.named_parameters()), 0.0
    for name in s:
        x, y = s[name], t[name]
        key = f"projectors.{name.replace('.', '_')}"
        if kind == "linear":
            x = torch.einsum("bne,fe->bnf", x, p[f"{key}.weight"]) + p[f"{key}.bias"]
        elif kind == "mlp":
            x = torch.einsum("bne,fe->bnf", x, p[f"{key}.0.weight"]) + p[f"{key}.0.bias"]
            x = torch.einsum("bne,fe->bnf", x / (1 + (-x).exp()), p[f"{key}.2.weight"]) + p[f"{key}.2.bias"]
        if norm:
            x, y = (
                (z - z.mean(2, keepdim=True)) / (z.var(2, keepdim=True, correction=0) + 1e-5).sqrt() for z in (x, y)
            )
        error = ((x - y) ** 2).sum(2) / y.shape[2]
        total = total + (error if weights is None else error * weights).sum(1) / x.shape[1]
    return total


@pytest.mark.parametrize(("kind", "norm"), [("linear", False), ("mlp", True), ("none", False), ("none", True)])
def test_value_and_gradients_are_the_definition(kind, norm):
    s, t = checks.tokens(6 if kind == "none" else 4, grad=True), checks.tokens(6, seed=1)
    loss = checks.build("feature", s, t, projector=kind, normalise=norm)
    checks.same(loss, s, t, lambda: oracle(loss, s, t, kind, norm))


def test_tokens_have_the_weights_of_the_batch():
    s, t = checks.tokens(4, grad=True), checks.tokens(6, seed=1)
    loss = checks.build("feature", s, t)
    weights = torch.tensor([[1.0, 2, 0, 1, 0.5, 1, 0]] * 2, dtype=torch.float64)
    checks.same(loss, s, t, lambda: oracle(loss, s, t, "linear", False, weights), checks.batch(weights=weights))


def test_a_student_that_is_its_teacher_has_nothing_to_learn():
    t = checks.tokens(6)
    assert not checks.term(checks.build("feature", t, t, projector="none"), t, t).value.any()


def test_what_does_not_fit_is_refused():
    s, t = checks.tokens(4), checks.tokens(6)
    with pytest.raises(UserError, match=r"none wants equal widths, found 4 and 6 of the teacher; any widths: linear"):
        checks.build("feature", s, t, projector="none")
    with pytest.raises(UserError, match=r"same samples and tokens, found \[2, 7, 4\] in b\.0 and \[2, 5, 6\] in b\.0"):
        checks.build("feature", s, checks.tokens(6, n=5))
    with pytest.raises(UserError, match=r"projector: wanted linear \| mlp \| none, found 'conv'"):
        checks.build("feature", projector="conv")
    with pytest.raises(UserError, match=r"has no projector for b\.0 yet; .* distiller\.build"):
        checks.term(checks.build("feature"), s, t)
