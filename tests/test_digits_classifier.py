"""The script that trained the demo's feature network."""

import importlib.util

import pytest
import torch

from dit_shd.data.datasets.digits import DigitsDataset


@pytest.fixture(scope="module")
def script(root):
    path = root / "experiments" / "digits_classifier" / "train.py"
    spec = importlib.util.spec_from_file_location("digits_classifier", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_training_is_reproducible_and_leaves_the_global_generator_alone(script):
    x, y = script.tensors(DigitsDataset("validation"))
    parts = (x[::3], y[::3]), (x[1::3], y[1::3])
    before = torch.random.get_rng_state()
    one, accuracy = script.train(*parts, epochs=2, batch_size=50, seed=3)
    two, _ = script.train(*parts, epochs=2, batch_size=50, seed=3)
    other, _ = script.train(*parts, epochs=2, batch_size=50, seed=4)
    assert torch.equal(one.classes.weight, two.classes.weight)
    assert not torch.equal(one.classes.weight, other.classes.weight)
    assert torch.equal(before, torch.random.get_rng_state())
    assert 0 <= accuracy <= 1


def test_shift_moves_whole_images_by_at_most_two_pixels(script):
    x = torch.full((200, 1, 7, 7), -1.0)
    x[:, 0, 3, 3] = 1.0
    moved = script.shift(x, torch.Generator().manual_seed(0))
    places = (moved == 1).nonzero()
    assert len(places) == 200  # one bright pixel in each image, none lost
    assert set((places[:, 2:] - 3).flatten().tolist()) == {-2, -1, 0, 1, 2}
