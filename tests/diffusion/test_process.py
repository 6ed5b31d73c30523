"""Rectified flow: noise of a velocity, and steps of a ratio of signal to noise."""

import pytest
import torch
from diffusers.configuration_utils import FrozenDict

from dit_shd.diffusion.process import RectifiedFlow, process_of
from dit_shd.models.prediction import CONVENTIONS


@pytest.mark.parametrize("prediction", CONVENTIONS)
def test_the_noise_of_a_perfect_velocity_is_the_noise(prediction):
    flow, step = RectifiedFlow(CONVENTIONS[prediction]), torch.tensor([0, 200, 900])
    x_0, noise = torch.randn(2, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    sign = -1 if prediction == "velocity_sit" else 1
    found = flow.noise(sign * (noise - x_0), flow.add_noise(x_0, noise, step), step)
    torch.testing.assert_close(found, noise)


@pytest.mark.parametrize("snr", [0.01, 1.0, 4.0])
def test_a_step_has_its_ratio_of_signal_to_noise(snr):
    sigma = RectifiedFlow(CONVENTIONS["velocity_sd3"]).step_at(snr) / 1000
    assert ((1 - sigma) / sigma) ** 2 == pytest.approx(snr, rel=0.05)


def test_the_schedule_of_a_model_that_predicts_noise_is_as_long_as_its_task_says():
    model = torch.nn.Module()
    model.config = FrozenDict({"prediction": "noise"})
    assert len(process_of(model, 100).schedule) == 100
