"""The ways to noise by their equations in float64, of class-conditional models and of text to image."""

import pytest
import torch

from dit_shd.diffusion.flow import TimestepDensity
from dit_shd.diffusion.objectives import variational_bits
from dit_shd.diffusion.process import Ddpm, Flow
from dit_shd.diffusion.schedule import Schedule

BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
KEPT = (1 - BETAS).cumprod(0)
TIMES = torch.tensor([1, 40, 500, 990])


# DDPM


def process(target, gamma=None):
    return Ddpm(Schedule.linear(), target, gamma)


def known(target):
    """x_0, noise, x_t and what a perfect model predicts."""
    x_0, noise = torch.randn(2, 4, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    signal, sigma = (x.sqrt().view(-1, 1, 1, 1) for x in (KEPT[TIMES], 1 - KEPT[TIMES]))
    x_t = signal * x_0 + sigma * noise
    return x_0, noise, x_t, noise if target == "epsilon" else signal * noise - sigma * x_0


@pytest.mark.parametrize("target", ["epsilon", "v_prediction"])
def test_a_perfect_prediction_gives_back_the_noise_and_the_mean_of_the_posterior(target):
    x_0, noise, x_t, perfect = known(target)
    ddpm, close = process(target), {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(ddpm.add_noise(x_0, noise, TIMES), x_t, **close)
    torch.testing.assert_close(ddpm.noise(perfect, x_t, TIMES), noise, **close)
    share = torch.rand(x_0.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    prediction, extra = ddpm.prediction(torch.cat([perfect, 2 * share - 1], 1), x_t, TIMES)
    assert torch.equal(prediction, perfect)
    beta, kept, before = (x.view(-1, 1, 1, 1) for x in (BETAS[TIMES], KEPT[TIMES], KEPT[TIMES - 1]))
    mean = before.sqrt() * beta / (1 - kept) * x_0 + (1 - beta).sqrt() * (1 - before) / (1 - kept) * x_t
    torch.testing.assert_close(extra["mean"], mean, **close)
    low = (beta * (1 - before) / (1 - kept)).log()
    torch.testing.assert_close(extra["log_variance"], share * beta.log() + (1 - share) * low, **close)
    assert ddpm.prediction(perfect, x_t, TIMES)[1] == {}


@pytest.mark.parametrize("target", ["epsilon", "v_prediction"])
def test_min_snr_weights(target):
    """min(SNR, 5) / SNR of the noise, / (SNR + 1) of v (arXiv 2303.09556)."""
    x_0, noise, x_t, perfect = known(target)
    snr = KEPT[TIMES] / (1 - KEPT[TIMES])
    assert (snr > 5).any() and (snr < 5).any()
    weight = snr.clamp(max=5) / (snr if target == "epsilon" else snr + 1)
    for gamma, wanted in ((None, torch.ones_like(snr)), (5.0, weight)):
        terms = process(target, gamma).losses(perfect + 2, {}, x_0, noise, x_t, TIMES)
        assert terms.keys() == {"noise"}
        torch.testing.assert_close(terms["noise"], 4 * wanted, rtol=1e-4, atol=0)


@pytest.mark.parametrize("target", ["epsilon", "v_prediction"])
def test_a_learned_variance_is_of_the_predicted_noise(target):
    """And what predicts v has no such term."""
    x_0, noise, wrong, share = torch.randn(4, 4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    ddpm = process(target)
    x_t = ddpm.add_noise(x_0, noise, TIMES)
    terms = ddpm.losses(noise + wrong, {"variance": share}, x_0, noise, x_t, TIMES)
    if target == "epsilon":
        want = variational_bits(Schedule.linear(), x_0, x_t, noise + wrong, share, TIMES)
        torch.testing.assert_close(terms.pop("variational"), want)
    assert terms.keys() == {"noise"}


def test_a_time_is_as_far_on_the_way_as_its_step_is_in_the_schedule():
    assert process("epsilon").share(TIMES).tolist() == pytest.approx([0.001, 0.04, 0.5, 0.99])
    assert process("epsilon").time_at(float(KEPT[321] / (1 - KEPT[321]))) == 321
    first, second = (KEPT[:2] / (1 - KEPT[:2])).tolist()  # nearest by their logarithms, which are between at their root
    assert [process("epsilon").time_at(share * (first * second) ** 0.5) for share in (1.05, 0.95)] == [0, 1]


# Rectified flow


def test_the_noise_of_a_perfect_velocity_is_the_noise():
    flow, sigma = Flow(), torch.tensor([0.0, 0.2, 0.9])
    x_0, noise = torch.randn(2, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    velocity, extra = flow.prediction(torch.cat([noise - x_0, x_0], 1), x_0, sigma)
    assert extra == {}
    torch.testing.assert_close(flow.noise(velocity, flow.add_noise(x_0, noise, sigma), sigma), noise)


@pytest.mark.parametrize("snr", [0.01, 1.0, 100.0])
def test_a_time_of_a_flow_has_its_ratio_of_signal_to_noise(snr):
    t = Flow().time_at(snr)
    assert ((1 - t) / t) ** 2 == pytest.approx(snr)


def test_a_rectangle_is_shifted_by_its_area():
    process = Flow(TimestepDensity(base_side=16))
    u = torch.linspace(0.01, 0.99, 9, dtype=torch.float64)
    square, portrait, landscape = (process.times(u, (9, 4, *sides)) for sides in ((32, 32), (64, 16), (16, 64)))
    torch.testing.assert_close((portrait, landscape), (square, square))
    torch.testing.assert_close(square, 2 * u.float() / (1 + u.float()))  # alpha = 2 of the uniform density


def test_the_shift_of_a_density_goes_before_that_of_the_process():
    """As a config says, before the pipeline's scheduler."""
    u, shape = torch.linspace(0.01, 0.99, 9, dtype=torch.float64), (9, 4, 8, 32)
    for density in (TimestepDensity(shift=2.0), TimestepDensity(base_side=8)):  # sides of 16: alpha = 2
        found = Flow(density, shift=lambda area: 9.0).times(u, shape)
        torch.testing.assert_close(found, 2 * u.float() / (1 + u.float()))
    found = Flow(shift=lambda area: area / 64).times(u, shape)
    torch.testing.assert_close(found, 4 * u.float() / (1 + 3 * u.float()))
