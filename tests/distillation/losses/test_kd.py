"""kd against its definition in float64 numpy: value, gradient by differences, weights of tokens, what is refused."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from dit_shd.core.errors import UserError
from dit_shd.core.plugins import Plugin
from dit_shd.distillation.logits import divergence
from dit_shd.distillation.losses import LOSSES, Forward
from dit_shd.tasks import Batch
from dit_shd.tasks import Output as Prediction


@dataclass(frozen=True, eq=False)
class Weighted(Batch):
    weight: torch.Tensor | None = None

    def prediction_weight(self):
        return self.weight


def batch(weight=None):
    return Weighted("plain", 0, torch.arange(3), weight)


def oracle(s, t, temperature):
    """The definition, entry by entry [...]."""

    def softmax(row):
        e = np.exp(row / temperature - (row / temperature).max())
        return e / e.sum()

    def kl(one, other):
        p, q = softmax(one), softmax(other)
        return temperature**2 * sum(p[k] * (np.log(p[k]) - np.log(q[k])) for k in range(len(p)))

    rows = [kl(one, other) for one, other in zip(t.reshape(-1, t.shape[-1]), s.reshape(-1, s.shape[-1]))]
    return np.array(rows).reshape(s.shape[:-1])


def logits(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape) * 2


def value(s, t, weight=None, **options):
    loss = LOSSES.build(Plugin("kd", options))
    return loss.term(Forward(torch.as_tensor(s)), Forward(torch.as_tensor(t)), batch(weight)).value


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_value_is_the_definition(temperature):
    s, t = logits(3, 7), logits(3, 7, seed=1)
    np.testing.assert_allclose(value(s, t, temperature=temperature), oracle(s, t, temperature), rtol=1e-12)
    s, t = logits(3, 5, 7), logits(3, 5, 7, seed=1)
    np.testing.assert_allclose(value(s, t, temperature=temperature), oracle(s, t, temperature).mean(1), rtol=1e-12)
    weight = np.random.default_rng(2).random((3, 5))
    weighted = value(s, t, torch.from_numpy(weight), temperature=temperature)
    np.testing.assert_allclose(weighted, (oracle(s, t, temperature) * weight).mean(1), rtol=1e-12)


def test_the_gradient_is_that_of_the_definition():
    s, t = logits(3, 4), logits(3, 4, seed=1)
    x = torch.from_numpy(s).requires_grad_()
    value(x, t, temperature=2.0).sum().backward()
    for i, k in np.ndindex(3, 4):
        step = np.zeros_like(s)
        step[i, k] = 1e-6
        wanted = (oracle(s + step, t, 2.0).sum() - oracle(s - step, t, 2.0).sum()) / 2e-6
        assert float(x.grad[i, k]) == pytest.approx(wanted, rel=1e-6, abs=1e-8)


def test_rows_are_worked_on_in_parts_and_the_gradient_is_the_students_alone(monkeypatch):
    s, t = (torch.from_numpy(logits(3, 5, 7, seed=seed)).float().requires_grad_() for seed in (0, 1))
    weights = torch.rand(3, 5)
    whole = divergence(s, t, 2.0)
    (wanted,) = torch.autograd.grad((whole * weights).sum(), s)
    monkeypatch.setattr("dit_shd.distillation.logits.NUMBERS", 30)
    parts = divergence(s, t, 2.0)
    (parts * weights).sum().backward()
    assert torch.equal(parts, whole) and torch.equal(s.grad, wanted) and t.grad is None
    half = s.detach().bfloat16().requires_grad_()
    rough = divergence(half, t.detach().bfloat16(), 2.0)
    rough.sum().backward()
    assert rough.dtype == torch.float32 and half.grad.dtype == torch.bfloat16
    torch.testing.assert_close(rough, divergence(half.float(), t.bfloat16().float(), 2.0))


def test_it_is_zero_where_student_and_teacher_agree_and_elsewhere_not():
    s = logits(3, 7)
    assert abs(value(s, s + 5.0)).max() < 1e-14
    assert value(s, logits(3, 7, seed=1)).min() > 0


def test_a_class_that_both_leave_out_takes_no_part():
    """As of a vocabulary that is padded."""
    s, t = (torch.from_numpy(logits(3, 7, seed=seed)) for seed in (0, 1))
    left_out = [torch.cat([x, torch.full((3, 2), -torch.inf)], 1).requires_grad_() for x in (s, t)]
    found = value(*left_out)
    torch.testing.assert_close(found, value(s, t))
    found.sum().backward()
    assert left_out[0].grad.isfinite().all() and not left_out[0].grad[:, 7:].any()


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_teacher_that_is_not_finite_is_no_perfect_one(bad):
    """The value of such a row had been 0."""
    s, t = (torch.from_numpy(logits(3, 7, seed=seed)) for seed in (0, 1))
    t[1, 2] = bad
    assert value(s, t).isfinite().tolist() == [True, False, True]


@pytest.mark.parametrize("whose", ["student", "teacher"])
@pytest.mark.parametrize("name", ["kd", "output"])
def test_a_token_of_weight_0_counts_nothing_though_it_has_no_finite_loss(name, whose):
    """Its 0 times infinity was NaN."""
    s, t = (torch.from_numpy(logits(2, 4, 7, seed=seed)) for seed in (0, 1))
    bad = s if whose == "student" else t
    bad[0, 1, 2], bad[1, 3, 0] = -torch.inf, torch.nan
    s.requires_grad_()
    weight = torch.tensor([[1.0, 0, 1, 2], [1, 1, 1, 0]], dtype=torch.float64)
    loss = LOSSES.build(Plugin(name))
    found = loss.term(*(Prediction(x) if name == "output" else Forward(x) for x in (s, t)), batch(weight)).value
    one, other = (x.detach().nan_to_num(nan=3, neginf=3) for x in (s, t))
    by_rows = oracle(one.numpy(), other.numpy(), 1.0) if name == "kd" else (one - other).square().mean(2).numpy()
    np.testing.assert_allclose(found.detach(), (by_rows * weight.numpy()).mean(1), rtol=1e-12)
    found.sum().backward()
    assert s.grad.isfinite().all() and not s.grad[weight == 0].any() and s.grad[0, 0].any()


@pytest.mark.parametrize("sizes", [(7, 9), (9, 7)])
def test_tokens_of_one_model_alone_take_no_part(sizes):
    """Vocabularies of one family are padded to unlike sizes (Qwen2.5's are)."""
    s, t = (torch.from_numpy(logits(3, 5, size, seed=i)).requires_grad_() for i, size in enumerate(sizes))
    found = value(s, t.detach(), temperature=2.0)
    np.testing.assert_allclose(found.detach(), value(s[..., :7].detach(), t[..., :7].detach(), temperature=2.0))
    found.sum().backward()
    assert s.grad[..., :7].abs().min() > 0 and not s.grad[..., 7:].any()


def test_what_is_no_logits_of_the_same_classes_is_refused():
    with pytest.raises(UserError, match=r"losses\.kd: wanted logits .* found \[3, 7\] of the student and \[3, 6\]"):
        value(logits(3, 7), logits(3, 6))
    with pytest.raises(UserError, match=r"found \[1, 3, 7\] of the student and \[1, 4, 7\]"):
        value(logits(1, 3, 7), logits(1, 4, 7))
    with pytest.raises(UserError, match=r"found \[2, 1, 4, 4\]"):
        value(logits(2, 1, 4, 4), logits(2, 1, 4, 4))
    with pytest.raises(UserError, match=r"losses\.kd\.temperature: wanted a finite number above 0, found 0"):
        value(logits(3, 7), logits(3, 7), temperature=0)
