"""The network of FID: torch-fidelity's port, its spatial features, its weights and their hash."""

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluating import photos

from dit_shd.core.config import make
from dit_shd.core.errors import UserError
from dit_shd.core.plugins import Plugin
from dit_shd.evaluation.evaluate import EvaluateConfig, evaluate
from dit_shd.evaluation.features import build_network, inception
from dit_shd.evaluation.features.inception import Inception
from dit_shd.evaluation.reference_statistics import StatisticsConfig, write_reference_statistics
from dit_shd.evaluation.scoring import score


@pytest.fixture(scope="session")
def random_inception(tmp_path_factory) -> Path:
    """Weights of Inception's shapes: signals neither die nor explode, the last bias is large."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, tensor in inception._expected_tensors().items():
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
    for where in ("features", "task.evaluation.features"):
        with pytest.raises(UserError, match=rf" and pass {re.escape(where)}\.weights=PATH$"):
            build_network(Plugin("inception"), where)


def test_an_error_names_a_network_s_key_where_its_config_has_it(tmp_path):
    where = "task.evaluation.features"
    for options in ({"weights": str(tmp_path / "features.weights")}, {"weight": "x"}):
        with pytest.raises(UserError) as caught:
            build_network(Plugin("clip", options), where)
        assert f"{where}.weights" in str(caught.value) or f"{where}: unknown key 'weight'" in str(caught.value)
        assert "evaluation.task" not in str(caught.value) and f"/{where}" not in str(caught.value)
