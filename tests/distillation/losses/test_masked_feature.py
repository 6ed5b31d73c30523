"""masked_feature against its definition, entry by entry."""

import loss_checks as checks
import pytest
import torch

from dit_shd.core.errors import UserError


def oracle(loss, s, t, k, project=True):
    """The definition [b], sample by sample."""
    p, values = dict(loss.named_parameters()), []
    for b in range(2):
        total = 0.0
        for name in s:
            x, y = s[name][b], t[name][b]
            if project:
                key = f"projectors.{name.replace('.', '_')}"
                x = x @ p[f"{key}.weight"].T + p[f"{key}.bias"]
            kept = [((z - z.mean()).abs() < k * z.std()).detach() for z in (x, y)]
            entries = (x - y)[kept[0] & kept[1]]
            total = total + (entries**2).sum() / max(1, len(entries))
        values.append(total)
    return torch.stack(values)


@pytest.mark.parametrize("k", [2.0, 0.7])
def test_value_and_gradients_are_the_definition(k):
    s, t = checks.tokens(4, grad=True), checks.tokens(6, seed=1)
    loss = checks.build("masked_feature", s, t, deviations=k)
    checks.same(loss, s, t, lambda: oracle(loss, s, t, k))


def test_an_outlier_of_either_model_takes_no_part():
    s, t = checks.tokens(6, grad=True), checks.tokens(6, seed=1)
    loss = checks.build("masked_feature", s, t, projector="none")
    with torch.no_grad():
        t["b.0"][0, 3, 2] = 1e3
        s["b.1"][1, 0, 0] = 1e3
    value = checks.same(loss, s, t, lambda: oracle(loss, s, t, 2.0, project=False))
    assert value.max() < 20


def test_a_deviation_is_of_n_less_one():
    """By hand: of (0, 0, 0, 0, 1) the last is 0.8 from the mean, and 1.9 deviations are 0.85; by n, 0.76."""
    s, t = ({"b.0": torch.eye(5, dtype=torch.float64)[None, :, i : i + 1]} for i in (0, 4))
    loss = checks.build("masked_feature", s, t, projector="none", deviations=1.9)
    assert checks.term(loss, s, t).value.tolist() == pytest.approx([2 / 5])


def test_the_share_that_is_kept_is_of_what_counts():
    """Two of seven tokens are padding; of the others all entries are kept."""
    s = checks.tokens(6)
    weights = torch.ones(2, 7).index_fill(1, torch.tensor([5, 6]), 0.0)
    loss = checks.build("masked_feature", s, s, checks.batch(weights=weights), projector="none", deviations=50.0)
    assert checks.term(loss, s, s, checks.batch(weights=weights)).logs["kept"] == 1


def test_what_makes_no_sense_is_refused():
    with pytest.raises(UserError, match="deviations: wanted a number above 0, found 0"):
        checks.build("masked_feature", deviations=0.0)
