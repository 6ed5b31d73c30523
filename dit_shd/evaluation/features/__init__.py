"""Feature networks: what an image is turned into before sets of images are compared.

One file here is one network, called by its file name. Only the Inception network of 2015-12-05 gives a
distance that may be called FID (Heusel et al., arXiv 1706.08500); any other network gives FD(title).

Shapes: b images, h x w pixels, c channels, d pooled features.
"""

import abc
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from dit_shd.core.errors import UserError
from dit_shd.core.plugins import PluginFolder


@dataclass(frozen=True)
class Features:
    """What one forward pass gives.

    pooled [b, d] float32: the vector of an image in which distances are taken.
    logits [b, classes] float32: class scores without the last layer's bias (the Inception Score of ADM and
        of torch-fidelity uses those), or None when the network does not classify.
    spatial [b, s] float32: the features of sFID, which still know where they are in the image, or None.
    """

    pooled: Tensor
    logits: Tensor | None = None
    spatial: Tensor | None = None


class FeatureNetwork(abc.ABC):
    """A frozen network with a name, the hash of its weights, and `extract`.

    A subclass sets the attributes below (in the class or in `__init__`) and implements `_forward`.

    title: the name in a figure, as in FD(digits).
    sha256: of the weights file, recorded with every figure.
    channels: of the images it reads; size: their (height, width), or None where any size goes.
    is_fid: True only for the real 2015 Inception weights; has_logits: whether it classifies; has_spatial:
        whether it has the features of sFID.
    network: the module; it is moved by `to`.
    """

    title: str
    sha256: str
    channels: int
    size: tuple[int, int] | None = None
    is_fid: bool = False
    has_logits: bool = True
    has_spatial: bool = False
    network: nn.Module

    @abc.abstractmethod
    def _forward(self, images: Tensor) -> Features:
        """Features of raw uint8 images [b, h, w, c], already checked and on the network's device."""

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    def to(self, device: str | torch.device) -> Self:
        """Move the network; `extract` brings the images there by itself."""
        self.network.to(device)
        return self

    @torch.no_grad()
    def extract(self, images: Tensor) -> Features:
        """Features of raw images, uint8 [b, h, w, c], on the network's device. Never resize or scale before.

        Convolutions run in true float32 (cuDNN's TF32 would move a distance in its third digit).

        Raises:
            UserError: images of another type or shape than the network reads.
        """
        self.check(tuple(images.shape[1:]), "images")
        if images.dtype != torch.uint8:
            raise UserError(f"features {self.title}: wanted uint8 images, found {images.dtype}; round to 0..255 first")
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            return self._forward(images.to(self.device))

    def check(self, shape: tuple[int, ...], where: str) -> None:
        """Refuse images whose shape (h, w, c) this network does not read; `where` names them."""
        size = "any size" if self.size is None else " x ".join(map(str, self.size))
        fits = len(shape) == 3 and shape[2] == self.channels and self.size in (None, shape[:2])
        if not fits:
            raise UserError(
                f"{where}: feature network {self.title} wants images of {size} with {self.channels} "
                f"channel(s), found (h, w, c) = {tuple(shape)}; choose another with features=NAME"
            )


FEATURES = PluginFolder(__name__, FeatureNetwork, "features")
