"""A small classifier of 28x28 handwritten digits, the demo's feature network: FD(digits), never FID.

The shipped weights are dit_shd/assets/digits_classifier.safetensors, trained by experiments/digits_classifier/train.py;
the .json beside them is the log.
"""

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from dit_shd.evaluation.features import FeatureNetwork, Features
from dit_shd.evaluation.network_weights import match_weights, read_weights

ASSET = Path(__file__).resolve().parents[2] / "assets" / "digits_classifier.safetensors"


class DigitsClassifier(nn.Module):
    """Two convolutions, 64 features, 10 classes without bias. Reads float [b,1,28,28] in [-1, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 5, padding=2)
        self.conv2 = nn.Conv2d(16, 32, 5, padding=2)
        self.hidden = nn.Linear(32 * 7 * 7, 64)
        self.drop = nn.Dropout(0.3)
        self.classes = nn.Linear(64, 10, bias=False)

    def features(self, x: Tensor) -> Tensor:
        """The penultimate layer [b,64]; GELU, so that no feature is dead and covariances stay regular."""
        x = F.max_pool2d(F.gelu(self.conv1(x)), 2)
        x = F.max_pool2d(F.gelu(self.conv2(x)), 2)
        return F.gelu(self.hidden(x.flatten(1)))

    def forward(self, x: Tensor) -> Tensor:
        """Class scores [b,10]."""
        return self.classes(self.drop(self.features(x)))


def scale(images: Tensor) -> Tensor:
    """Uint8 images [b,28,28,1] as float32 [b,1,28,28] in [-1, 1]."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


class DigitsFeatures(FeatureNetwork):
    """The demo's classifier: images [b,28,28,1], 64 pooled features, 10 logits.

    Args:
        weights: Another file of the same network; the shipped file if left out.
    """

    title = "digits"
    channels = 1
    size = (28, 28)

    def __init__(self, weights: Path | None = None) -> None:
        path = ASSET if weights is None else weights
        advice = "leave it out for those that ship, or train some by experiments/digits_classifier/train.py"
        state, self.sha256 = read_weights(path, advice)
        self.network = DigitsClassifier().eval().requires_grad_(False)
        match_weights(state, self.network.state_dict(), path, advice)
        self.network.load_state_dict(state)
        if weights is not None:
            self.title = f"digits-{self.sha256[:8]}"

    def _forward(self, images: Tensor) -> Features:
        assert isinstance(self.network, DigitsClassifier)
        pooled = self.network.features(scale(images))
        return Features(pooled, self.network.classes(pooled))
