"""How a class-conditional model is called."""

import re

import pytest
import small_families
import torch

from dit_shd.core.errors import UserError
from dit_shd.diffusion.denoiser import NO_LABEL, Denoiser
from dit_shd.models import loading
from dit_shd.models.families.dit import DiT
from dit_shd.models.families.mdt import MDTv2
from dit_shd.models.prediction import CONVENTIONS


def test_no_label_is_each_models_own_number_for_none(teacher):
    """Of a model that knows more classes than the data has, its number and not the data's."""
    model = MDTv2(**{**dict(loading.load(teacher).config), "num_classes": 7})
    given = []
    model.register_forward_pre_hook(lambda _, args, kwargs: given.append(kwargs["class_labels"]), with_kwargs=True)
    labels = torch.tensor([0, NO_LABEL, 2, NO_LABEL])
    with torch.no_grad():
        Denoiser(model)(torch.zeros(4, 1, 8, 8), torch.zeros(4, dtype=torch.long), labels)
    assert given[0].tolist() == [0, 7, 2, 7]


def test_a_model_in_training_drops_no_labels_of_its_own():
    """diffusers' DiT would, in every block others: teacher and student are given the same ones, dropped by the task."""
    model, labels = small_families.diffusers_dit(), torch.tensor([0, 1, 2, NO_LABEL] * 16)
    inputs = torch.randn(64, 1, 8, 8), torch.full((64,), 7), labels
    want = Denoiser(model)(*inputs)
    torch.testing.assert_close(Denoiser(model.train())(*inputs), want)


@pytest.mark.parametrize("prediction", CONVENTIONS)
def test_a_model_is_asked_in_its_convention(prediction):
    """By hand, as the code of each says: its time, and the sign of its velocity."""
    torch.manual_seed(0)
    options = dict(sample_size=4, patch_size=2, in_channels=1, num_layers=1, num_attention_heads=1, num_classes=3)
    model = DiT(**options, attention_head_dim=8, prediction=prediction)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    x, sigma, labels = torch.randn(3, 1, 4, 4), torch.tensor([0.1, 0.5, 0.8]), torch.tensor([0, 2, -1])
    time, sign = {
        "velocity_sit": (1 - sigma, -1),  # time 1 is data, and data - noise is learned
        "velocity_repa": (sigma, 1),
        "velocity_sd3": (1000 * sigma, 1),
    }[prediction]
    wanted = sign * model(x, time, torch.tensor([0, 2, 3]), return_dict=False)[0][:, :1]
    torch.testing.assert_close(Denoiser(model).predict(x, sigma, labels), wanted)


@pytest.mark.parametrize("shape", [(2, 1, 1, 1), (2, 3, 8, 8), (1, 1, 8, 8)])
def test_an_output_of_another_shape_is_refused(shape):
    """It would be broadcast, or its first channels be taken."""
    model = small_families.build("dit")
    model.register_forward_hook(lambda *_: (torch.zeros(shape),))
    words = rf"^DiT: wanted an output of the shape .* \[2, 1, 8, 8\], .* found {re.escape(str(list(shape)))}$"
    with pytest.raises(UserError, match=words):
        Denoiser(model).predict(torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.long), torch.tensor([0, 1]))
