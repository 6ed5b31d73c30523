"""Output distillation: the noise's error, and the KL of a learned variance."""

import math

import pytest
import torch
from small_steps import Says, batch_of

from dit_shd.core.errors import UserError
from dit_shd.diffusion.schedule import Schedule
from dit_shd.distillation.losses.output import Output
from dit_shd.tasks import Output as Prediction
from dit_shd.tasks.diffusion import Diffusion


def term_of(loss, student, teacher, t=(1, 500)):
    """The term of what two models give."""
    task, batch = Diffusion(), batch_of(torch.randn(len(student), 1, 4, 4), t)
    return loss.term(*(task.predict(Says(output), batch) for output in (student, teacher)), batch)


def test_output_distillation_is_the_noises_mean_squared_error():
    student, teacher = torch.randn(2, 2, 4, 4, requires_grad=True), torch.randn(2, 2, 4, 4)
    term = term_of(Output(), student, teacher)
    want = [(student[i, 0] - teacher[i, 0]).square().mean() for i in range(2)]
    torch.testing.assert_close(term.value, torch.stack(want))
    assert term_of(Output(), teacher, teacher).value.abs().max() == 0


def test_variance_part_is_a_kl_that_trains_the_variance():
    teacher = torch.randn(2, 2, 4, 4)
    student = teacher.clone().requires_grad_()
    loss = Output(variance=True)
    assert term_of(loss, student, teacher).value.abs().max() < 1e-6
    moved = teacher + torch.tensor([0.0, 0.5])[None, :, None, None]
    moved.requires_grad_()
    value = term_of(loss, moved, teacher).value.sum()
    assert value > 0
    (grad,) = torch.autograd.grad(value, moved)
    assert grad[:, 1].abs().min() > 0
    assert grad[:, 0].abs().max() < 1e-6  # equal noise: only the variance moves
    with pytest.raises(UserError, match="must predict a variance"):
        term_of(loss, student[:, :1], teacher[:, :1])


def test_variance_part_by_hand():
    """Equal means: KL is (r - 1 - log r) / 2 nats with r the ratio of variances, over ln 2."""
    schedule, t = Schedule.linear(), 1
    noise, v_t, v_s = torch.randn(1, 1, 4, 4), torch.full((1, 1, 4, 4), 0.3), torch.full((1, 1, 4, 4), -0.2)
    low, high = schedule.posterior_log_variance[t], math.log(schedule.betas[t])
    gap = (0.65 - 0.4) * (high - low)
    want = (math.exp(gap) - 1 - gap) / 2 / math.log(2)
    term = term_of(Output(variance=True), torch.cat([noise, v_s], 1), torch.cat([noise, v_t], 1), [t])
    assert term.logs["variance"].item() == pytest.approx(want, rel=1e-3)


def test_the_variance_of_several_teachers_is_refused_by_its_reason():
    with pytest.raises(UserError, match=r"variance: several teachers have no mean of it; .* \['a', 'b'\]"):
        Output.from_options(teacher=["a", "b"], variance=True)
    assert Output.from_options(teacher=["a", "b"]).teacher == ["a", "b"]


def test_predictions_of_other_shapes_are_refused():
    models = (torch.randn(2, 2, 4, 4), torch.randn(2, 2, 8, 8))
    with pytest.raises(
        UserError, match=r"output: wanted predictions of one shape, found \[2, 1, 4, 4\] .* \[2, 1, 8, 8\]"
    ):
        Output().term(*(Prediction(x[:, :1]) for x in models), batch_of(torch.randn(2, 1, 4, 4), (1, 500)))


def test_the_variance_alone_learns_from_the_teachers_distribution():
    draw = torch.Generator().manual_seed(0)
    (noise, mean, log), (t_noise, t_mean, t_log) = torch.randn(2, 3, 2, 1, 4, 4, generator=draw)
    leaves = [x.requires_grad_() for x in (mean, log)]
    student = Prediction(noise, {"variance": log, "mean": mean, "log_variance": log})
    teacher = Prediction(t_noise, {"variance": t_log, "mean": t_mean, "log_variance": t_log})
    value = Output(variance=True).term(student, teacher, batch_of(torch.zeros(2, 1, 4, 4))).value.sum()
    of_mean, of_log = torch.autograd.grad(value, leaves, allow_unused=True)
    assert of_mean is None and of_log.abs().sum() > 0
