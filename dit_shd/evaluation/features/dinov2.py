"""DINOv2 (Oquab et al., arXiv 2304.07193): FD in its features agrees with people better than FID does.

As in Stein et al. (arXiv 2306.04675): ViT-L/14, images at 224 x 224 (bicubic, antialias, rounded), the normalised
class token, 1024 features. Position embeddings of 37 x 37 patches are resampled as Meta's own code does it for these
images, which is not as timm does. The architecture is timm's; the weights are a local file, either Meta's
(dinov2_vitl14_pretrain.pth) or timm's, so nothing is downloaded. The title carries the hash of the file, as
FD(dinov2-large-1a2b3c4d).
"""

import math
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dit_shd.evaluation.features import FeatureNetwork, Features
from dit_shd.evaluation.network_weights import match_weights, read_weights
from dit_shd.evaluation.resizing import resized

SIDE, PATCH = 224, 14
OFFSET = 0.1
"""What Meta's code adds to the number of patches before it divides by those of the embeddings."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ADDRESS = "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth"

Variant = Literal["small", "base", "large", "giant"]


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

    def __init__(self, weights: Path, variant: Variant = "large") -> None:
        self.network, self.sha256 = read_network(weights, variant, "meta")
        self.title = f"dinov2-{variant}-{self.sha256[:8]}"
        self.options = {"positions": "meta"}

    def _forward(self, images: Tensor) -> Features:
        mean, std = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (MEAN, STD))
        tokens = self.network.forward_features((resized(images, SIDE) / 255 - mean) / std)  # type: ignore[operator]
        return Features(tokens[:, 0])


def read_network(weights: Path, variant: Variant, positions: Literal["meta", "timm"]) -> tuple[nn.Module, str]:
    """The network for images of 224 x 224, frozen, and the sha256 of its file.

    Args:
        weights: The file.
        variant: Size of the network that the file holds.
        positions: Whose way of resampling position embeddings of other sizes: Meta's, as FD takes it, or timm's.

    Raises:
        UserError: As of DINOv2.
    """
    import timm
    from timm.models.vision_transformer import checkpoint_filter_fn

    advice = f"download {ADDRESS} (or another size, with features.variant) and pass features.weights=PATH"
    state, sha256 = read_weights(weights, advice)
    name = f"vit_{variant}_patch14_dinov2"
    network = timm.create_model(name, pretrained=False, img_size=SIDE, num_classes=0).eval().requires_grad_(False)
    if "patch_embed.proj.weight" in state and "pos_embed" in state:
        if positions == "meta":
            state = {**state, "pos_embed": _resampled(state["pos_embed"])}
        state = checkpoint_filter_fn(state, network)  # type: ignore[arg-type]  # Meta's names, and sizes
    match_weights(state, network.state_dict(), weights, advice)
    network.load_state_dict(state)
    return network, sha256


def _resampled(positions: Tensor) -> Tensor:
    """Position embeddings [1,1+n,e] for 16 x 16 patches, by the formula of Meta's code.

    Bicubic, not antialiased, at the scale (16 + 0.1) / side, so that the last patches lie a little inside of the image.
    """
    token, patches = positions[:, :1], positions[:, 1:]
    side, wanted = math.isqrt(patches.shape[1]), SIDE // PATCH
    if side**2 != patches.shape[1] or side == wanted:
        return positions
    grid = patches.float().transpose(1, 2).unflatten(2, (side, side))
    scale = (wanted + OFFSET) / side
    grid = F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic", antialias=False)
    return torch.cat([token, grid.flatten(2).transpose(1, 2).to(positions.dtype)], 1)
