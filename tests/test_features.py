"""Feature networks: reading weights without running them, the digits classifier, Inception."""

import hashlib
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dit_shd import registry
from dit_shd.config import make
from dit_shd.errors import UserError
from dit_shd.evaluator import EvaluateConfig, evaluate, score
from dit_shd.features import FeatureNetwork, digits, inception, read_weights
from dit_shd.features.digits import Digits, DigitsClassifier, shift
from dit_shd.features.inception import Inception
from dit_shd.reference_statistics import StatisticsConfig, write_reference_statistics


class Trap:
    """Unpickling this makes a folder: proof that code ran."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def photos(n: int, h: int, w: int, c: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (n, h, w, c), dtype=np.uint8))


@pytest.fixture(scope="session")
def random_inception(tmp_path_factory) -> Path:
    """Weights of Inception's shapes: signals neither die nor explode, the last bias is large."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, tensor in inception._wanted().items():
        if name.endswith("conv.weight"):
            state[name] = torch.randn(tensor.shape, generator=generator) * (2 / tensor[0].numel()) ** 0.5
        elif name.endswith(("running_var", "bn.weight")):
            state[name] = torch.rand(tensor.shape, generator=generator) + 0.5
        elif name == "fc.weight":
            state[name] = torch.randn(tensor.shape, generator=generator) * 0.1
        else:
            state[name] = torch.randn(tensor.shape, generator=generator).to(tensor.dtype)
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(state, path)
    return path


@pytest.fixture(scope="session")
def held_out() -> tuple[torch.Tensor, torch.Tensor]:
    """The 500 digits that neither the classifier nor a teacher was trained on."""
    return digits.split_digits()[2:]


# Reading weights


def test_a_malicious_pickle_is_refused_and_never_runs(tmp_path):
    mark, path = tmp_path / "mark", tmp_path / "weights.pth"
    torch.save({"fc.weight": Trap(mark)}, path)
    for network in (Digits, Inception):
        with pytest.raises(UserError, match="cannot be read safely"):
            network(weights=path)
    path.write_bytes(pickle.dumps(Trap(mark), protocol=2))
    with pytest.raises(UserError, match="cannot be read safely"):
        Inception(weights=path)
    assert not mark.exists()
    pickle.loads(path.read_bytes())
    assert mark.exists(), "the trap itself must work, or this test proves nothing"


@pytest.mark.parametrize("network", [Digits, Inception])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "found nothing"),
        (b"", "cannot be read safely"),
        (b"not weights at all", "cannot be read safely"),
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
    assert ("https://" in text) if network is Inception else ("dit_shd.features.digits" in text)


def test_a_broken_safetensors_file_is_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(digits.ASSET.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot be read safely"):
        Digits(weights=path)


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
    state = read_weights(digits.ASSET, "")[0]
    change(state)
    path = tmp_path / "weights.safetensors"
    save_file(state, path)
    with pytest.raises(UserError, match=message):
        Digits(weights=path)


# The digits classifier


def test_the_shipped_classifier_is_as_accurate_on_held_out_digits_as_its_log_says(held_out):
    images, labels = held_out
    log = json.loads(digits.ASSET.with_suffix(".json").read_text())
    assert torch.bincount(labels).tolist() == [50] * 10
    logits = Digits().extract(images).logits
    assert logits is not None
    accuracy = (logits.argmax(1) == labels).double().mean().item()
    assert accuracy == pytest.approx(log["held_out_accuracy"], abs=0.004)  # two digits of 500 for another CPU
    assert accuracy > 0.97
    assert digits.ASSET.stat().st_size < 1_000_000


def test_digits_and_the_dataset_hold_out_the_same_images(held_out):
    images = registry.find("data", "digits")(split="validation").images()
    assert (torch.from_numpy(np.ascontiguousarray(images)) == held_out[0]).all()


def test_logits_are_a_linear_map_of_the_pooled_features():
    network = Digits()
    found = network.extract(photos(5, 28, 28, 1))
    assert isinstance(network.network, DigitsClassifier)
    torch.testing.assert_close(found.logits, found.pooled @ network.network.classes.weight.T)
    assert found.pooled.shape == (5, 64)
    assert found.pooled.dtype == torch.float32


def test_features_of_an_image_do_not_depend_on_its_batch():
    network, images = Digits(), photos(9, 28, 28, 1)
    alone = torch.cat([network.extract(image[None]).pooled for image in images])
    torch.testing.assert_close(network.extract(images).pooled, alone, rtol=1e-5, atol=1e-5)


def test_no_feature_is_dead_on_real_digits(held_out):
    """A feature of zero variance would make every covariance singular."""
    pooled = Digits().extract(held_out[0]).pooled
    assert pooled.std(0).min() > 1e-3


def test_training_is_reproducible_and_leaves_the_global_generator_alone(held_out, monkeypatch):
    x, y = held_out
    monkeypatch.setattr(digits, "split_digits", lambda: (x[::3], y[::3], x[1::3], y[1::3]))
    before = torch.random.get_rng_state()
    one, accuracy = digits.train(epochs=2, batch_size=50, seed=3)
    two, _ = digits.train(epochs=2, batch_size=50, seed=3)
    other, _ = digits.train(epochs=2, batch_size=50, seed=4)
    assert torch.equal(one.classes.weight, two.classes.weight)
    assert not torch.equal(one.classes.weight, other.classes.weight)
    assert torch.equal(before, torch.random.get_rng_state())
    assert 0 <= accuracy <= 1


def test_shift_moves_whole_images_by_at_most_two_pixels():
    x = torch.full((200, 1, 7, 7), -1.0)
    x[:, 0, 3, 3] = 1.0
    moved = shift(x, torch.Generator().manual_seed(0))
    places = (moved == 1).nonzero()
    assert len(places) == 200  # one bright pixel in each image, none lost
    assert set((places[:, 2:] - 3).flatten().tolist()) == {-2, -1, 0, 1, 2}


@pytest.mark.parametrize("shape", [(2, 28, 28, 3), (2, 32, 32, 1), (2, 28, 28)])
def test_digits_refuses_other_shapes(shape):
    with pytest.raises(UserError, match=r"wants images of 28 x 28 with 1 channel"):
        Digits().extract(torch.zeros(shape, dtype=torch.uint8))


def test_float_images_are_refused():
    with pytest.raises(UserError, match=r"wanted uint8 images, found torch\.float32"):
        Digits().extract(torch.zeros(2, 28, 28, 1))


# Inception


def test_inception_gives_what_torch_fidelity_gives_for_raw_images(random_inception):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    images = photos(3, 40, 56, 3)
    names = ["2048", "logits_unbiased", "logits"]
    theirs = FeatureExtractorInceptionV3("inception-v3-compat", names, str(random_inception))
    pooled, unbiased, biased = theirs(images.permute(0, 3, 1, 2))
    network = Inception(weights=random_inception)
    found = network.extract(images)
    torch.testing.assert_close(found.pooled, pooled, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.logits, unbiased, rtol=1e-5, atol=1e-5)
    assert (biased - unbiased).abs().max() > 1  # so the line above tells the two apart
    assert pooled.std(0).max() > 1e-3  # and images are told apart
    assert not any(p.requires_grad for p in network.network.parameters())
    assert not network.network.training


def test_spatial_features_are_seven_channels_of_mixed_6d_flattened_with_channels_last(random_inception):
    """By hand from the blocks of torch-fidelity's port: 1x1 convolution, batch norm, ReLU, then numpy's reshape."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    images = photos(2, 33, 41, 3)
    theirs = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(random_inception)).double().eval()
    entered = []
    theirs.Mixed_6d.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    theirs.feature_extractor_internal_dtype = torch.float64
    theirs(images.permute(0, 3, 1, 2))
    branch = theirs.Mixed_6d.branch1x1
    out = torch.einsum("nchw,oc->nohw", entered[0], branch.conv.weight[:, :, 0, 0])
    norm = branch.bn
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    out = ((out - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]).clamp(min=0)
    expected = out.detach().numpy().transpose(0, 2, 3, 1)[..., :7].reshape(2, -1)
    found = Inception(weights=random_inception).extract(images).spatial
    assert found is not None
    assert found.shape == (2, 17 * 17 * 7)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * expected.max())
    assert expected.std(0).max() > 1e-3


def test_inception_from_images_to_a_statistics_file_to_a_record(random_inception, tmp_path):
    """The whole path of a published figure, on random weights: all four statistics, images, every metric."""
    samples, reference = photos(7, 32, 32, 3, seed=1).numpy(), photos(9, 32, 32, 3, seed=2).numpy()
    np.savez(tmp_path / "samples.npz", samples)
    np.savez(tmp_path / "reference.npz", reference)
    network = {"name": "inception", "weights": str(random_inception)}
    known = {"images": str(tmp_path / "reference.npz"), "out": str(tmp_path / "known.npz"), "keep_images": 9}
    write_reference_statistics(make(StatisticsConfig, {**known, "features": network, "device": "cpu"}))
    with np.load(tmp_path / "known.npz", allow_pickle=False) as file:
        shapes = {key: file[key].shape for key in ("mu", "sigma", "mu_s", "sigma_s", "arr_0")}
    assert shapes == {
        "mu": (2048,), "sigma": (2048, 2048), "mu_s": (2023,), "sigma_s": (2023, 2023), "arr_0": (9, 32, 32, 3),
    }  # fmt: skip
    values = {"samples": str(tmp_path / "samples.npz"), "reference": str(tmp_path / "known.npz"), "page": False}
    record = evaluate(make(EvaluateConfig, {**values, "features": network, "device": "cpu"}))
    direct = score(samples, reference, Inception(weights=random_inception))
    title = f"inception-{record['features']['sha256'][:8]}"
    assert {f"FD({title})", f"sFD({title})", f"IS({title})", f"KID({title})", "coverage"} <= record["figures"].keys()
    assert record["figures"] == pytest.approx(direct, rel=1e-5)
    assert record["adm_comparable"]["why_not"][0] == f"features {title} are not the 2015 Inception"


def test_only_the_known_hash_is_called_fid(random_inception, monkeypatch):
    network = Inception(weights=random_inception)
    assert not network.is_fid
    assert network.title == f"inception-{network.sha256[:8]}"
    monkeypatch.setattr(inception, "SHA256", network.sha256)
    real = Inception(weights=random_inception)
    assert real.is_fid
    assert real.title == "inception-2015"


def test_the_known_hash_is_the_one_in_torch_fidelitys_address():
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    assert URL_INCEPTION_V3 == inception.ADDRESS
    assert f"-{inception.SHA256[:8]}.pth" in URL_INCEPTION_V3
    assert len(inception.SHA256) == 64


@pytest.fixture
def served(tmp_path, monkeypatch):
    """An empty torch hub, and a download that copies a local file to a server's place."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    source = tmp_path / "served.pth"
    monkeypatch.setattr(inception, "ADDRESS", source.as_uri())
    return source


def test_weights_are_downloaded_once_and_every_byte_is_checked(served, random_inception, monkeypatch):
    served.write_bytes(random_inception.read_bytes())
    with pytest.raises(UserError, match=r"could not be downloaded \(invalid hash value.*features\.weights=PATH"):
        Inception()
    assert not inception.default_weights().exists()
    monkeypatch.setattr(inception, "SHA256", hashlib.sha256(served.read_bytes()).hexdigest())
    assert Inception().title == "inception-2015"
    served.unlink()
    assert Inception().is_fid


def test_without_weights_and_network_the_error_names_the_address_and_the_option(served):
    with pytest.raises(
        UserError, match=r"could not be downloaded .*; download file://.*features\.weights=PATH"
    ) as caught:
        Inception()
    assert str(inception.default_weights()) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", registry.names("features"))
def test_every_feature_network_is_found_by_its_file_name(name):
    network = registry.find("features", name)
    assert issubclass(network, FeatureNetwork)
    assert not network.is_fid, "FID is decided by the weights that are read, never by the class"
