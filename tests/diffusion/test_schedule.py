"""Diffusion: laws, and diffusers and scipy as oracles. The public MDT code is compared in test_public.py."""

import math

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from scipy import integrate, stats
from torch._subclasses import FakeTensorMode
from torch.distributions import Normal, kl_divergence
from torch.utils._python_dispatch import TorchDispatchMode

from dit_shd.core.errors import UserError
from dit_shd.diffusion.objectives import discretised_nll, gaussian_kl, split, variational_bits
from dit_shd.diffusion.process import Ddpm
from dit_shd.diffusion.schedule import Schedule

LINEAR = Schedule.linear()


def test_public_250_steps():
    steps = LINEAR.respaced(250).timesteps
    assert steps[:5].tolist() == [0, 4, 8, 12, 16]
    assert steps[-5:].tolist() == [983, 987, 991, 995, 999]


@pytest.mark.parametrize("count", [1, 2, 10, 50, 999, 1000])
def test_respacing_keeps_the_visited_alphas(count):
    spaced = LINEAR.respaced(count)
    assert len(spaced) == count
    np.testing.assert_allclose(spaced.alphas_cumprod, LINEAR.alphas_cumprod[spaced.timesteps], rtol=1e-11)


def test_respacing_to_everything_is_the_same():
    np.testing.assert_allclose(LINEAR.respaced(1000).betas, LINEAR.betas, rtol=1e-9)


@pytest.mark.parametrize("count", [0, 1001, -3])
def test_impossible_step_counts_are_refused(count):
    with pytest.raises(UserError, match="wanted 1 to 1000"):
        LINEAR.respaced(count)


def test_noising_inverts():
    x, noise, step = torch.randn(8, 2, 4, 4), torch.randn(8, 2, 4, 4), torch.arange(0, 800, 100)
    x_t = LINEAR.add_noise(x, noise, step)
    torch.testing.assert_close(LINEAR.predict_x_0(x_t, noise, step), x, rtol=1e-3, atol=2e-3)


def test_posterior_is_bayes():
    """q(x_{t-1}|x_t,x_0) is proportional to q(x_t|x_{t-1}) q(x_{t-1}|x_0): products of Gaussian precisions."""
    for t in (1, 10, 500, 999):
        beta, before = LINEAR.betas[t], LINEAR.alphas_cumprod[t - 1]
        precision = (1 - beta) / beta + 1 / (1 - before)
        mean = (math.sqrt(1 - beta) / beta * 0.7 + math.sqrt(before) / (1 - before) * -0.3) / precision
        found = LINEAR.posterior_mean(torch.tensor([[-0.3]]), torch.tensor([[0.7]]), torch.tensor([t]))
        assert found.item() == pytest.approx(mean, abs=1e-5)
        assert LINEAR.posterior_log_variance[t] == pytest.approx(-math.log(precision), abs=1e-9)


def test_trajectory_equals_diffusers_where_diffusers_is_exact():
    """Ancestral steps with a learned range against DDPMScheduler(linspace), whose float32 tables differ by 3e-4."""
    scheduler = DDPMScheduler(
        1000,
        beta_start=1e-4,
        beta_end=0.02,
        variance_type="learned_range",
        clip_sample=False,
        timestep_spacing="linspace",
    )
    scheduler.set_timesteps(250)
    spaced = LINEAR.respaced(250)
    assert scheduler.timesteps.tolist() == spaced.timesteps[::-1].tolist()
    torch.manual_seed(0)
    kernel = torch.randn(4, 2, 3, 3) * 0.3
    ours = theirs = torch.randn(2, 2, 6, 6)
    for step in reversed(range(250)):
        t = torch.full((2,), step)

        def model(x):
            return torch.tanh(torch.nn.functional.conv2d(x, kernel, padding=1))

        generator = torch.Generator().manual_seed(step)
        theirs = scheduler.step(model(theirs), int(spaced.timesteps[step]), theirs, generator=generator).prev_sample
        fresh = torch.randn(ours.shape, generator=torch.Generator().manual_seed(step))
        ours = spaced.ddpm_step(ours, *model(ours).chunk(2, dim=1), t, fresh)
    assert (ours - theirs).norm() / theirs.norm() < 2e-3


def test_last_step_adds_no_noise():
    x = torch.randn(2, 1, 2, 2)
    zero = torch.zeros(2, dtype=torch.long)
    results = [LINEAR.ddpm_step(x, x, x, zero, fresh) for fresh in (torch.zeros_like(x), torch.ones_like(x))]
    assert torch.equal(*results)


def test_a_variance_beyond_its_range_goes_on_along_the_line():
    """As in the public code, which does not clip what the model gives."""
    schedule, step = LINEAR, torch.tensor([0, 1, 500, 999])
    low, high, beyond = (schedule.log_variance(torch.full((4, 1, 1, 1), v), step) for v in (-1.0, 1.0, 3.0))
    torch.testing.assert_close(high.flatten(), torch.tensor(np.log(schedule.betas[step])).float())
    torch.testing.assert_close(low.flatten()[1:], torch.tensor(schedule.posterior_log_variance[step[1:]]).float())
    torch.testing.assert_close(beyond, 2 * high - low)


def test_gaussian_kl_equals_quadrature():
    p, q = stats.norm(0.3, math.exp(0.2)), stats.norm(-0.4, math.exp(-0.1))
    want = integrate.quad(lambda x: p.pdf(x) * (p.logpdf(x) - q.logpdf(x)), -15, 15)[0]
    found = gaussian_kl(*map(torch.tensor, (0.3, 0.4, -0.4, -0.2)))
    assert found.item() == pytest.approx(want, abs=1e-5)


def test_discretised_likelihood_integrates_to_one():
    """The 256 bins of one pixel (the outer two open) hold all of the mass."""
    levels = torch.linspace(-1, 1, 256)
    mass = torch.exp(-discretised_nll(levels, torch.tensor(0.25), torch.tensor(-1.5))).sum()
    assert mass.item() == pytest.approx(1, abs=2e-3)


def test_variational_term_is_zero_for_the_true_posterior_and_trains_the_variance_only():
    x_0, noise, step = torch.randn(4, 2, 4, 4), torch.randn(4, 2, 4, 4), torch.tensor([1, 50, 500, 999])
    x_t = LINEAR.add_noise(x_0, noise, step)
    v = torch.full_like(x_0, -1.0).requires_grad_()  # the lower end of the range is the posterior's own variance
    predicted = noise.clone().requires_grad_()
    bits = variational_bits(LINEAR, x_0, x_t, predicted, v, step)
    assert bits.abs().max() < 1e-4
    raised = variational_bits(LINEAR, x_0, x_t, predicted, v + 1, step).sum()
    grads = torch.autograd.grad(raised, [v, predicted], allow_unused=True)
    assert grads[0].abs().sum() > 0
    assert grads[1] is None


@pytest.mark.parametrize("step", [0, 3, 700])
def test_the_variational_term_is_its_definition_in_float64(step):
    """Bits, mean over dimensions: KL of two normals, and at step 0 the likelihood of a pixel, the outer ones open."""
    draw = torch.Generator().manual_seed(step)
    x_0, noise, wrong = torch.randn(3, 2, 2, 4, 4, generator=draw, dtype=torch.float64)
    x_0 = (127.5 * (0.5 * x_0 + 1)).round().clamp(0, 255) / 127.5 - 1
    x_0[:, 0, 0, 0], x_0[:, 0, 0, 1] = -1, 1
    v = torch.rand(2, 2, 4, 4, generator=draw, dtype=torch.float64) * 2 - 1
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    kept = (1 - beta).cumprod(0)
    before = torch.cat([torch.ones(1, dtype=torch.float64), kept])
    variance = (beta * (1 - before[:-1]) / (1 - kept))[max(step, 1)]  # that of the first step is 0: the second's
    x_t = kept[step].sqrt() * x_0 + (1 - kept[step]).sqrt() * noise
    predicted = noise + wrong

    def posterior(x):
        of_x = before[step].sqrt() * beta[step] / (1 - kept[step])
        return of_x * x + (1 - beta[step]).sqrt() * (1 - before[step]) / (1 - kept[step]) * x_t

    share = (v + 1) / 2
    scale = (0.5 * (share * beta[step].log() + (1 - share) * variance.log())).exp()
    learned = Normal(posterior((x_t - (1 - kept[step]).sqrt() * predicted) / kept[step].sqrt()), scale)
    if step:
        nats = kl_divergence(Normal(posterior(x_0), variance.sqrt()), learned)
    else:
        below = torch.where(x_0 == -1, 0.0, learned.cdf(x_0 - 1 / 255))
        nats = -(torch.where(x_0 == 1, 1.0, learned.cdf(x_0 + 1 / 255)) - below).log()
    bits = variational_bits(LINEAR, x_0, x_t, predicted, v, torch.full((2,), step))
    rtol = 1e-4 if step else 0.02  # the public code's distribution function is an approximation
    torch.testing.assert_close(bits, (nats / math.log(2)).mean((1, 2, 3)), rtol=rtol, atol=0)


def test_split_refuses_other_channel_counts():
    assert split(torch.zeros(1, 2, 1, 1), 2)[1] is None
    with pytest.raises(ValueError, match="wanted 2 or 4 channels, found 3"):
        split(torch.zeros(1, 3, 1, 1), 2)


class Copies(TorchDispatchMode):
    """Counts copies to another device."""

    count = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.count += operator is torch.ops.aten._to_copy.default and "device" in (kwargs or {})
        return operator(*args, **(kwargs or {}))


def test_tables_are_copied_to_a_device_once():
    """To a GPU that is only thought of; each copy to one waits for all that was issued before it."""
    schedule, counts = Schedule.linear(100), []
    with FakeTensorMode():
        try:
            x, step = torch.zeros(2, 1, 4, 4, device="cuda"), torch.zeros(2, dtype=torch.long, device="cuda")
            x[:1]
        except RuntimeError as error:
            pytest.skip(f"this PyTorch does not think of a GPU without a driver ({error})")
        for _ in range(2):
            with Copies() as copies:
                Ddpm(schedule, gamma=5.0).losses(x, {"variance": x}, x, x, x, step)
            counts.append(copies.count)
    assert counts[0] > 5 and counts[1] == 0
