"""How a class-conditional model is called."""

import small_families
import torch

from dit_shd.diffusion.denoiser import NO_LABEL, Denoiser
from dit_shd.models import loading
from dit_shd.models.families.mdt import MDTv2


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
