"""vkd against its definition; P has orthonormal columns however its parameter moves."""

import loss_checks as checks
import pytest
import torch

from dit_shd.core.errors import UserError


def gram_schmidt(free):
    """Orthonormal columns, one after the other."""
    columns = []
    for column in free.T:
        for other in columns:
            column = column - (column @ other) * other
        columns.append(column / column.norm())
    return torch.stack(columns, 1)


def oracle(loss, s, t, every, names):
    """The definition [b]."""
    total = 0.0
    for name in names:
        x, y = s[name], t[name]
        if not every:
            x, y = x.mean(1, keepdim=True), y.mean(1, keepdim=True)
        p = gram_schmidt(dict(loss.named_parameters())[f"projectors.{name.replace('.', '_')}.free"])
        y = (y - y.mean(2, keepdim=True)) / (y.var(2, keepdim=True, correction=0) + 1e-5).sqrt()
        gap = (torch.einsum("bne,fe->bnf", x, p) - y).abs()
        total = total + torch.where(gap < 1, gap**2 / 2, gap - 0.5).mean((1, 2))
    return total


@pytest.mark.parametrize(("tokens", "layers"), [("mean", "last"), ("all", "sections")])
def test_value_and_gradients_are_the_definition(tokens, layers):
    s, t = checks.tokens(4, grad=True), checks.tokens(6, seed=1)
    loss = checks.build("vkd", s, t, tokens=tokens, layers=layers)
    names = ["b.1"] if layers == "last" else list(s)
    checks.same(loss, s, t, lambda: oracle(loss, s, t, tokens == "all", names))


def test_the_columns_are_orthonormal_after_training():
    s, t = checks.tokens(4, grad=True), checks.tokens(6, seed=1)
    loss = checks.build("vkd", s, t, layers="sections", tokens="all")
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.1)
    values = []
    for _ in range(20):
        values.append(checks.term(loss, s, t).value.sum())
        optimizer.zero_grad()
        values[-1].backward()
        optimizer.step()
    assert values[-1] < 0.9 * values[0]
    weight = loss.projectors["b_0"].weight
    torch.testing.assert_close(weight.T @ weight, torch.eye(4, dtype=torch.float64))


def test_what_does_not_fit_is_refused():
    with pytest.raises(UserError, match=r"no wider than its teacher, found 6 in b\.1 and 4 .*any widths: .*self_corr"):
        checks.build("vkd", checks.tokens(6), checks.tokens(4))
    with pytest.raises(UserError, match="tokens: wanted mean or all, found 'first'"):
        checks.build("vkd", tokens="first")
