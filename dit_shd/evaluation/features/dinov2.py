"""DINOv2 (Oquab et al., arXiv 2304.07193): FD in its features agrees with people better than FID does.

As in Stein et al. (arXiv 2306.04675): ViT-L/14, images at 224 x 224 (bicubic, antialias, rounded), the normalised
class token, 1024 features. The architecture is timm's; the weights are a local file, either Meta's
(dinov2_vitl14_pretrain.pth) or timm's, so nothing is downloaded. The title carries the hash of the file, as
FD(dinov2-large-1a2b3c4d).
"""

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from dit_shd.evaluation.features import FeatureNetwork, Features
from dit_shd.evaluation.network_weights import match_weights, read_weights
from dit_shd.evaluation.resizing import resized

SIDE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ADDRESS = "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth"


class DINOv2(FeatureNetwork):
    """Images [b,y,x,3] of any size; 384, 768, 1024 or 1536 features by variant; no logits.

    Args:
        weights: The file.
        variant: Size of the network that the file holds.

    Raises:
        UserError: No such file, a file that is not safe to read, or weights of another network.
    """

    channels = 3
    has_logits = False

    def __init__(self, weights: Path, variant: Literal["small", "base", "large", "giant"] = "large") -> None:
        import timm
        from timm.models.vision_transformer import checkpoint_filter_fn

        advice = f"download {ADDRESS} (or another size, with features.variant) and pass features.weights=PATH"
        state, self.sha256 = read_weights(weights, advice)
        self.title = f"dinov2-{variant}-{self.sha256[:8]}"
        name = f"vit_{variant}_patch14_dinov2"
        network = timm.create_model(name, pretrained=False, img_size=SIDE, num_classes=0).eval().requires_grad_(False)
        if "patch_embed.proj.weight" in state and "pos_embed" in state:
            state = checkpoint_filter_fn(state, network)  # type: ignore[arg-type]  # Meta's names; position embeddings of 518 x 518
        match_weights(state, network.state_dict(), weights, advice)
        network.load_state_dict(state)
        self.network = network

    def _forward(self, images: Tensor) -> Features:
        mean, std = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (MEAN, STD))
        tokens = self.network.forward_features((resized(images, SIDE) / 255 - mean) / std)  # type: ignore[operator]
        return Features(tokens[:, 0])
