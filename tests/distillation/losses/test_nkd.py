"""nkd against its definition in float64 numpy: value and gradient; its least value; what is refused."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from dit_shd.core.errors import UserError
from dit_shd.core.plugins import Plugin
from dit_shd.distillation.losses import LOSSES, Forward
from dit_shd.tasks import Batch

LABELS = np.array([2, 0, 4, 4])


@dataclass(frozen=True, eq=False)
class Labelled(Batch):
    labels: torch.Tensor


def oracle(s, t, gamma, temperature):
    """The definition, sample by sample [b]."""

    def probabilities(row):
        e = np.exp(row - row.max())
        return e / e.sum()

    values = []
    for one, other, y in zip(s, t, LABELS):
        target = -probabilities(other)[y] * np.log(probabilities(one)[y])
        rest = [k for k in range(len(one)) if k != y]
        p, q = probabilities(other[rest] / temperature), probabilities(one[rest] / temperature)
        values.append(target - gamma * temperature**2 * sum(p[i] * np.log(q[i]) for i in range(len(rest))))
    return np.array(values)


def logits(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape or (4, 5)) * 2


def value(s, t, labels=LABELS, **options):
    loss = LOSSES.build(Plugin("nkd", options))
    batch = Batch("plain", 0, torch.arange(4))
    if labels is not None:
        batch = Labelled("plain", 0, torch.arange(4), torch.from_numpy(labels))
    return loss.term(Forward(torch.as_tensor(s)), Forward(torch.as_tensor(t)), batch).value


@pytest.mark.parametrize("options", [{}, {"gamma": 0.5, "temperature": 3.0}, {"gamma": 0.0}])
def test_value_and_gradient_are_those_of_the_definition(options):
    full = {"gamma": 1.0, "temperature": 1.0, **options}
    s, t = logits(0), logits(1)
    x = torch.from_numpy(s).requires_grad_()
    found = value(x, t, **options)
    np.testing.assert_allclose(found.detach(), oracle(s, t, **full), rtol=1e-12)
    found.sum().backward()
    for i, k in np.ndindex(4, 5):
        step = np.zeros_like(s)
        step[i, k] = 1e-6
        wanted = (oracle(s + step, t, **full).sum() - oracle(s - step, t, **full).sum()) / 2e-6
        assert float(x.grad[i, k]) == pytest.approx(wanted, rel=1e-6, abs=1e-8)


def test_the_other_classes_are_nearest_where_student_and_teacher_agree():
    """The part of the other classes has no gradient there; that of the target draws on until it is certain."""
    t = torch.from_numpy(logits(1))
    x = t.clone().requires_grad_()
    (value(x, t, gamma=2.0) - value(x, t, gamma=1.0)).sum().backward()
    assert x.grad.abs().max() < 1e-12


def test_a_class_that_both_leave_out_takes_no_part():
    s, t = (torch.from_numpy(logits(seed)) for seed in (0, 1))
    left_out = [torch.cat([x, torch.full((4, 2), -torch.inf)], 1).requires_grad_() for x in (s, t)]
    found = value(*left_out)
    torch.testing.assert_close(found, value(s, t))
    found.sum().backward()
    assert left_out[0].grad.isfinite().all() and not left_out[0].grad[:, 5:].any()


def test_it_is_refused_where_there_is_no_class_for_each_sample():
    with pytest.raises(UserError, match=r"losses\.nkd: wanted logits \[b,k\] and a class .* and no labels; it is for"):
        value(logits(0), logits(1), labels=None)
    with pytest.raises(UserError, match=r"losses\.nkd: wanted .* found \[4, 3, 5\] and \[4\]"):
        value(logits(0, 4, 3, 5), logits(1, 4, 3, 5))
    with pytest.raises(UserError, match=r"losses\.nkd\.gamma: wanted 0 or more, found -1"):
        value(logits(0), logits(1), gamma=-1.0)
