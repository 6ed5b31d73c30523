"""Processes of text-to-image pipelines, by diffusers' schedulers."""

import math

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, DDPMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler

from dit_shd.core.errors import UserError
from dit_shd.diffusion.flow import TimestepDensity
from dit_shd.diffusion.text_process import ddpm_schedule, pipeline_shift, process_of


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


def test_the_shift_of_an_adapter_goes_before_that_of_the_scheduler():
    """Where it has one for that many tokens."""

    def shift(scheduler, tokens):
        return 5.0 if tokens == 16 else None

    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
    process = process_of("flow", scheduler, TimestepDensity(), "none", None, 2, shift)
    half = torch.tensor([0.5]).double()
    assert process.times(half, (1, 4, 8, 8)).tolist() == pytest.approx([5 / 6])
    assert process.times(half, (1, 4, 8, 4)).tolist() == pytest.approx([3 / 4])
