"""lift against least squares of numpy; its two parts are the whole error."""

import loss_checks as checks
import numpy as np
import pytest
import torch

from dit_shd.core.errors import UserError
from dit_shd.tasks import Output


def predictions(grad=False):
    torch.manual_seed(0)
    s, t = torch.randn(2, 3, 4, 5, dtype=torch.float64), torch.randn(2, 3, 4, 5, dtype=torch.float64)
    return Output((0.6 * t + 0.3 + 0.5 * s).requires_grad_(grad)), Output(t)


def parts(s, t, groups):
    """Coarse and fine errors [b] by numpy's lstsq, group by group."""
    found = []
    for x, y in zip(s.detach().flatten(1).numpy(), t.flatten(1).numpy()):
        coarse = fine = 0.0
        for group in np.array_split(np.argsort(np.abs(x - y)), groups):
            basis = np.stack([y[group], np.ones(len(group))], 1)
            fit = basis @ np.linalg.lstsq(basis, x[group], rcond=None)[0]
            coarse, fine = coarse + ((fit - y[group]) ** 2).sum(), fine + ((x[group] - fit) ** 2).sum()
        found.append((coarse / len(x), fine / len(x)))
    return np.array(found).T


@pytest.mark.parametrize("groups", [1, 4, 7])
@pytest.mark.parametrize(("step", "factor"), [(0, 0.0), (500, 0.5), (2000, 1.0)])
def test_value_is_the_definition_and_its_stages(groups, step, factor):
    s, t = predictions()
    loss = checks.build("lift", groups=groups, coarse=2.0, fine={0: 0.0, 1000: 1.0})
    coarse, fine = parts(s.prediction, t.prediction, groups)
    value = loss.term(s, t, checks.batch(step=step)).value
    np.testing.assert_allclose(value, 2 * coarse + factor * fine, rtol=1e-9)


@pytest.mark.parametrize("groups", [1, 5])
def test_both_parts_together_are_the_error(groups):
    """Value and gradient of the loss output; and the gradient of the coarse part is that of differences."""
    s, t = predictions(grad=True)
    value = checks.build("lift", groups=groups, fine=1.0).term(s, t, checks.batch()).value
    want = (s.prediction - t.prediction).square().flatten(1).mean(1)
    torch.testing.assert_close(value, want)
    found, wanted = (torch.autograd.grad(x.sum(), s.prediction)[0] for x in (value, want))
    torch.testing.assert_close(found, wanted)
    coarse = checks.build("lift", groups=groups, fine=0.0).term(s, t, checks.batch()).value
    way = torch.randn_like(t.prediction)
    slope = (torch.autograd.grad(coarse.sum(), s.prediction)[0] * way).sum()
    ends = [parts(s.prediction + e * way, t.prediction, groups)[0].sum() for e in (1e-6, -1e-6)]
    torch.testing.assert_close(float(slope), (ends[0] - ends[1]) / 2e-6, rtol=1e-4, atol=0)


def test_a_constant_teacher_is_fitted_too():
    s, t = predictions()
    flat = Output(torch.full_like(t.prediction, 0.7))
    value = checks.build("lift", fine=0.0).term(s, flat, checks.batch()).value
    torch.testing.assert_close(value, (s.prediction.flatten(1).mean(1) - 0.7).square())


def test_what_does_not_fit_is_refused():
    s, t = predictions()
    with pytest.raises(UserError, match="groups: wanted 1 or more, found 0"):
        checks.build("lift", groups=0)
    with pytest.raises(UserError, match="at least 100 positions"):
        checks.build("lift", groups=100).term(s, t, checks.batch())
    with pytest.raises(UserError, match=r"losses\.lift\.fine: weight: wanted 0 or more"):
        checks.build("lift", fine=-1.0)
