"""Processes of text-to-image pipelines, by their equations in float64 and by diffusers' schedulers."""

import math

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, DDPMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler

from dit_shd.core.errors import UserError
from dit_shd.diffusion.flow import TimestepDensity
from dit_shd.diffusion.objectives import variational_bits
from dit_shd.diffusion.text_process import ddpm_schedule, pipeline_shift, process_of

BETAS = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
KEPT = (1 - BETAS).cumprod(0)
TIMES = torch.tensor([1, 40, 500, 990])


def process(target, gamma=None):
    scheduler = {"beta_start": 1e-4, "beta_end": 0.02, "prediction_type": target}
    return process_of("ddpm", scheduler, TimestepDensity(), "none", gamma, 2)


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


def test_a_time_is_as_far_on_the_way_as_its_step_is_in_the_schedule():
    assert process("epsilon").share(TIMES).tolist() == pytest.approx([0.001, 0.04, 0.5, 0.99])
    assert process("epsilon").time_at(float(KEPT[321] / (1 - KEPT[321]))) == 321


def test_shift_and_schedule_are_the_scheduler_s():
    static = FlowMatchEulerDiscreteScheduler(shift=3.0)
    u = torch.linspace(1, 1000, 1000, dtype=torch.float64).flip(0) / 1000
    process = process_of("flow", dict(static.config), TimestepDensity(), "none", None, 2)
    torch.testing.assert_close(process.times(u, (1, 4, 8, 8)), static.sigmas, rtol=1e-5, atol=1e-6)
    dynamic = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    tokens = 1024
    mu = 0.5 + (1.15 - 0.5) * (tokens - 256) / (4096 - 256)
    dynamic.set_timesteps(10, mu=mu)
    alpha = pipeline_shift(dict(dynamic.config), tokens)
    sigma = torch.linspace(1, 0.001, 10)
    torch.testing.assert_close(alpha * sigma / (1 + (alpha - 1) * sigma), dynamic.sigmas[:-1], rtol=1e-5, atol=1e-6)
    assert math.isclose(alpha, math.exp(mu))
    assert pipeline_shift({"flow_shift": 3.0}, tokens) == 3
    none = process_of("flow", dict(static.config), TimestepDensity(shift=1.0), "none", None, 2)
    torch.testing.assert_close(none.times(u, (1, 4, 8, 8)), u.float())


@pytest.mark.parametrize("snr", [0.01, 1.0, 100.0])
def test_a_time_of_a_flow_has_its_ratio_of_signal_to_noise(snr):
    t = process_of("flow", {}, TimestepDensity(), "none", None, 2).time_at(snr)
    assert ((1 - t) / t) ** 2 == pytest.approx(snr)


def test_a_rectangle_is_shifted_by_its_area():
    process = process_of("flow", {}, TimestepDensity(base_side=16), "none", None, 2)
    u = torch.linspace(0.01, 0.99, 9, dtype=torch.float64)
    square, portrait, landscape = (process.times(u, (9, 4, *sides)) for sides in ((32, 32), (64, 16), (16, 64)))
    torch.testing.assert_close((portrait, landscape), (square, square))
    torch.testing.assert_close(square, 2 * u.float() / (1 + u.float()))  # alpha = 2 of the uniform density


@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "given"])
@pytest.mark.parametrize("target", ["epsilon", "v_prediction"])
def test_ddpm_is_the_scheduler_s(betas, target):
    how = {"trained_betas": [1e-3 + i * 1e-5 for i in range(950)]} if betas == "given" else {"beta_schedule": betas}
    scheduler = DDPMScheduler(prediction_type=target, **how)
    x_0, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    t = torch.tensor([10, 900])
    process = process_of("ddpm", dict(scheduler.config), TimestepDensity(), "none", None, 2)
    x_t = process.add_noise(x_0, noise, t)
    torch.testing.assert_close(x_t, scheduler.add_noise(x_0, noise, t), rtol=1e-4, atol=1e-5)
    perfect = noise if target == "epsilon" else scheduler.get_velocity(x_0, noise, t)
    loss = process.losses(perfect, {}, x_0, noise, x_t, t)["noise"]
    assert loss.max() < 1e-9


def test_what_a_config_leaves_out_is_the_class_s_own():
    written = {"_class_name": "DDPMScheduler", "num_train_timesteps": 500}
    found = ddpm_schedule(written)
    torch.testing.assert_close(torch.from_numpy(found.betas).float(), DDPMScheduler(num_train_timesteps=500).betas)
    with pytest.raises(UserError, match=r"snr_shift_scale: wanted 1, found 3\.0"):
        ddpm_schedule({"_class_name": "CogVideoXDDIMScheduler"})


def test_other_schedulers_are_refused():
    with pytest.raises(UserError, match="beta_schedule: wanted linear or scaled_linear, found sigmoid"):
        ddpm_schedule({"beta_schedule": "sigmoid"})
    with pytest.raises(UserError, match="rescale_betas_zero_snr: wanted false, found true"):
        ddpm_schedule({"rescale_betas_zero_snr": True})
    with pytest.raises(
        UserError, match="beta_start and beta_end or with trained_betas, found EDMEulerScheduler without"
    ):
        ddpm_schedule(EDMEulerScheduler(prediction_type="v_prediction").config | {"_class_name": "EDMEulerScheduler"})
    with pytest.raises(UserError, match=r"snr_shift_scale: wanted 1, found 3\.0; not supported"):
        ddpm_schedule(CogVideoXDDIMScheduler().config)
    with pytest.raises(UserError, match="prediction_type: wanted epsilon or v_prediction, found sample"):
        process_of("ddpm", {"prediction_type": "sample"}, TimestepDensity(), "none", None, 2)


def test_a_dynamic_shift_goes_by_the_tokens_of_the_image():
    """64 x 32 latents in patches of 2 x 2 are 512 tokens."""
    scheduler = dict(FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True).config)
    u = torch.linspace(0.01, 0.99, 9, dtype=torch.float64)
    alpha = math.exp(0.5 + (1.15 - 0.5) * (512 - 256) / (4096 - 256))
    found = process_of("flow", scheduler, TimestepDensity(), "none", None, 2).times(u, (9, 4, 64, 32))
    torch.testing.assert_close(found, (alpha * u / (1 + (alpha - 1) * u)).float())


def test_a_linear_dynamic_shift_is_the_scheduler_s():
    dynamic = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, time_shift_type="linear")
    dynamic.set_timesteps(10, mu=1.15)
    alpha, sigma = pipeline_shift(dict(dynamic.config), 4096), torch.linspace(1, 0.001, 10)
    torch.testing.assert_close(alpha * sigma / (1 + (alpha - 1) * sigma), dynamic.sigmas[:-1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("target", ["epsilon", "v_prediction"])
def test_a_learned_variance_is_of_the_predicted_noise(target):
    """And what predicts v has no such term."""
    x_0, noise, wrong, share = torch.randn(4, 4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    ddpm = process(target)
    x_t = ddpm.add_noise(x_0, noise, TIMES)
    terms = ddpm.losses(noise + wrong, {"variance": share}, x_0, noise, x_t, TIMES)
    if target == "epsilon":
        schedule = ddpm_schedule({"beta_start": 1e-4, "beta_end": 0.02})
        want = variational_bits(schedule, x_0, x_t, noise + wrong, share, TIMES)
        torch.testing.assert_close(terms.pop("variational"), want)
    assert terms.keys() == {"noise"}
