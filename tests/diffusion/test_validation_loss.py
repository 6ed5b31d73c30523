"""The loss on held-out data again, by a plain loop in float64."""

import numpy as np
import pytest
import torch
from torch import nn

from dit_shd.core import rng
from dit_shd.data.datasets import Dataset
from dit_shd.diffusion.adapters.sd3 import SD3
from dit_shd.diffusion.flow import TimestepDensity
from dit_shd.diffusion.text_process import process_of
from dit_shd.diffusion.validation_loss import LOSS, ValidationLoss

COUNT = 44
"""More than are computed at once, and no multiple of that."""
PICTURES = np.random.default_rng(0).normal(size=(COUNT, 2, 4, 4))


class Pictures(Dataset):
    shape, fields, classes = (2, 4, 4), frozenset({"latents", "text", "text_mask"}), 1

    def __len__(self):
        return COUNT

    def batch(self, indices, draws):
        latents, text = torch.from_numpy(PICTURES[indices]).float(), torch.from_numpy(indices).float()
        mask = torch.ones(len(indices), 1, dtype=torch.bool)
        return {"latents": latents, "text": text.view(-1, 1, 1), "text_mask": mask}

    def images(self):
        raise NotImplementedError

    def labels(self):
        raise NotImplementedError


class Line(SD3):
    """Predicts by a line through everything that it is given."""

    def predict(self, model, x, time, text, guidance=None):
        assert not model.training
        number, level = (y.view(-1, 1, 1, 1) for y in (text.embeddings[:, 0, 0], time))
        return model.weight * x + 0.05 * number - level + guidance


@pytest.mark.parametrize("training", [False, True])
def test_it_is_the_mean_over_the_first_samples_at_evenly_spaced_levels(training):
    model = nn.Linear(1, 1, bias=False).train(training)
    nn.init.constant_(model.weight, 0.7)
    flow = process_of("flow", {}, TimestepDensity(), "none", None, 2)
    found = ValidationLoss(count=COUNT - 1).figures(model, Pictures(), Line(), flow, 0.25)
    losses = []
    for i in range(COUNT - 1):
        noise, level = rng.stream(0, "validation", 0, i).standard_normal((2, 4, 4), np.float32), (i % 8 + 0.5) / 8
        x_t = (1 - level) * PICTURES[i] + level * noise.astype(np.float64)
        losses.append(np.square(0.7 * x_t + 0.05 * i - level + 0.25 - (noise - PICTURES[i])).mean())
    assert found == {LOSS: pytest.approx(np.mean(losses), rel=1e-5)}
    assert model.training is training
