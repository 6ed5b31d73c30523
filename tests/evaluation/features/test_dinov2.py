"""DINOv2 with random weights against timm."""

import numpy as np
import pytest
import timm
import torch
from evaluating import photos

from dit_shd.core.errors import UserError
from dit_shd.core.plugins import Plugin
from dit_shd.evaluation.features import FEATURES
from dit_shd.evaluation.features.dinov2 import DINOv2
from dit_shd.evaluation.resizing import resized


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
    found = network.extract(photos(2, 50, 50, 3))
    assert found.pooled.shape == (2, 384)
    assert found.logits is None
    assert network.title == f"dinov2-small-{network.sha256[:8]}"
    theirs.set_input_size((224, 224))
    theirs.pos_embed.data = network.network.pos_embed.data  # timm resamples them otherwise
    x = resized(photos(2, 50, 50, 3), 224) / 255
    x = (x - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    torch.testing.assert_close(found.pooled, theirs.forward_features(x)[:, 0].detach(), rtol=1e-4, atol=1e-4)
    assert found.pooled.std(0).max() > 1e-3


def test_position_embeddings_are_resampled_as_by_metas_code(meta_file):
    """Cubic convolution (a = -0.75) around (i + 0.5) 37 / 16.1 - 0.5, edges repeated."""
    path, _ = meta_file
    given = torch.load(path, weights_only=True)["pos_embed"].double()
    places = (np.arange(16) + 0.5) * 37 / 16.1 - 0.5
    weights = np.zeros((16, 37))
    for i, place in enumerate(places):
        for k in range(int(np.floor(place)) - 1, int(np.floor(place)) + 3):
            d = abs(place - k)
            near = 1.25 * d**3 - 2.25 * d**2 + 1
            weights[i, min(max(k, 0), 36)] += near if d <= 1 else -0.75 * (d**3 - 5 * d**2 + 8 * d - 4)
    grid = given[0, 1:].view(37, 37, -1).numpy()
    wanted = np.einsum("iy,jx,yxe->ije", weights, weights, grid).reshape(256, -1)
    found = DINOv2(path, variant="small").network.pos_embed[0]
    torch.testing.assert_close(found[1:].double(), torch.from_numpy(wanted), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found[:1].double(), given[0, :1])


def test_dinov2_needs_its_weights(tmp_path):
    with pytest.raises(UserError, match=r"features\.weights: a value is needed"):
        FEATURES.build(Plugin("dinov2"), "features")
    with pytest.raises(UserError, match=r"found nothing; download https://.*features\.weights=PATH"):
        DINOv2(tmp_path / "none.pth")
    torch.save({"a": torch.zeros(3)}, tmp_path / "bad.pth")
    with pytest.raises(UserError, match="weights of another network"):
        DINOv2(tmp_path / "bad.pth", variant="small")
