"""Feature networks: they turn each image into a vector before sets of images are compared.

One file here is one network, called by its file name. Only the Inception network of 2015-12-05 gives a
distance that may be called FID (Heusel et al., arXiv 1706.08500); any other network gives FD(title).

Shapes: b images, y rows and x columns of pixels, c channels, d pooled features, s spatial features.
"""

import json
import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from types import MappingProxyType
from typing import Any, Self

import torch
from torch import Tensor, nn

from dit_shd.core.config import resolve
from dit_shd.core.errors import UserError
from dit_shd.core.plugins import Plugin, PluginFolder
from dit_shd.core.precision import true_float32
from dit_shd.core.pretrained import READING

PROMPTS = 256
"""Of one forward."""

_log = logging.getLogger("dit_shd")


@dataclass(frozen=True)
class Features:
    """The result of one forward pass."""

    pooled: Tensor
    """[b,d] float32, the vector of each image; distances are taken between these."""
    logits: Tensor | None = None
    """[b,classes] float32, class scores without the last layer's bias, as the Inception Score of ADM and of
    torch-fidelity uses them; None if the network does not classify."""
    spatial: Tensor | None = None
    """[b,s] float32, the features of sFID, one for each position in a feature map; None if there are none."""


class FeatureNetwork(ABC):
    """A frozen network with a name, the hash of its weights, and `extract`.

    A subclass sets the attributes below (in the class or in `__init__`) and implements `_forward`.
    """

    title: str
    """The name in a figure, as in FD(digits)."""
    sha256: str
    """Of the weights file, recorded with every figure."""
    channels: int
    """Of the images it reads."""
    size: tuple[int, int] | None = None
    """(y, x) of the images it reads; None for any size."""
    is_fid: bool = False
    """True only for the 2015 Inception weights."""
    has_logits: bool = True
    """Whether it classifies."""
    has_spatial: bool = False
    """Whether it has the features of sFID."""
    reads_text: bool = False
    """Whether it has the features of prompts, too (`embed`)."""
    options: Mapping[str, Any] = MappingProxyType({})
    """Of the plug-in that are not its defaults, weights aside, and what their hash leaves out of the folder: with
    it they say which features these are."""
    network: nn.Module
    """Moved to another device by `to`."""

    @abstractmethod
    def _forward(self, images: Tensor) -> Features:
        """Features of raw uint8 images [b,y,x,c], already checked and on the network's device."""

    @property
    def identity(self) -> str:
        """Hash of the weights, and the options: networks of one title may differ in both."""
        return f"{self.sha256} {json.dumps(dict(self.options), sort_keys=True, default=str)}"

    @property
    def device(self) -> torch.device:
        """The network's device."""
        return next(self.network.parameters()).device

    def to(self, device: str | torch.device) -> Self:
        """Move the network; `extract` then moves the images to the same device."""
        self.network.to(device)
        return self

    @torch.no_grad()
    def extract(self, images: Tensor) -> Features:
        """Features of raw images, uint8 [b,y,x,c], on the network's device. Never resize or scale before.

        It runs in true float32, whatever the caller's precision is (TF32 or autocast would move a distance in its third
        digit).

        Raises:
            UserError: Images of another type or shape than the network reads.
        """
        self.check(tuple(images.shape[1:]), "images")
        if images.dtype != torch.uint8:
            raise UserError(f"features {self.title}: wanted uint8 images, found {images.dtype}; round to 0..255 first")
        self.network.eval()
        with self._exactly():
            return self._forward(images.to(self.device))

    @torch.no_grad()
    def embed(self, prompts: Sequence[str]) -> tuple[Tensor, int]:
        """The features of prompts [n,d], of the length of images' pooled ones, and how many prompts are cut."""
        if cut := self.longer(prompts):
            words = "prompts: %d of %d are longer than %s reads, and are scored by their beginning"
            _log.warning(words, cut, len(prompts), self.title)
        with self._exactly():
            parts = [self._embed(prompts[first : first + PROMPTS]) for first in range(0, len(prompts), PROMPTS)]
        return torch.cat(parts), cut

    @contextmanager
    def _exactly(self) -> Generator[None]:
        """In float32, as deterministic as the libraries are."""
        library: Any = torch.backends.cudnn
        wanted = {"enabled": True, "benchmark": False, "deterministic": True}
        before = {
            name: getattr(library, name) for name in wanted
        }  # library.flags reads TF32 by a setting that may raise
        try:
            for name, value in wanted.items():
                setattr(library, name, value)
            with true_float32(), torch.autocast(self.device.type, enabled=False):
                yield
        finally:
            for name, value in before.items():
                setattr(library, name, value)

    def longer(self, prompts: Sequence[str]) -> int:
        """How many prompts are longer than what the network reads, where it can tell."""
        return 0

    def _embed(self, prompts: Sequence[str]) -> Tensor:
        """Features of some prompts [b,d], for one forward."""
        raise UserError(f"features {self.title}: reads no text")

    def check(self, shape: tuple[int, ...], where: str) -> None:
        """Refuse images whose shape (y, x, c) this network does not read; `where` names them.

        Raises:
            UserError: Another size or another number of channels.
        """
        size = "any size" if self.size is None else " x ".join(map(str, self.size))
        accepted = len(shape) == 3 and shape[2] == self.channels and self.size in (None, shape[:2])
        if not accepted:
            raise UserError(
                f"{where}: feature network {self.title} reads images of {size} with {self.channels} "
                f"channel(s), found (y, x, c) = {tuple(shape)}; choose another with features=NAME"
            )


FEATURES = PluginFolder(__name__, FeatureNetwork, "features")


def build_network(plugin: Plugin, where: str = "features") -> FeatureNetwork:
    """A network as a config asks for it, with its options.

    Args:
        plugin: Its name and options.
        where: The config key, for errors.

    Raises:
        UserError: No such network, options that it does not have, or weights that it cannot have.
    """
    parameters = signature(FEATURES.find(plugin.name)).parameters
    try:
        with READING:
            network: FeatureNetwork = FEATURES.build(plugin, where)
    except UserError as error:  # a network names its keys as those of `features`
        keys = rf"(?<![\w./])features\.(?=(?:{'|'.join(parameters)})\b)"
        raise UserError(re.sub(keys, f"{where}.", str(error))) from error
    given = resolve(FEATURES.filled(plugin, where).options)
    defaults = {key: resolve(value.default) for key, value in parameters.items()}
    changed = {k: v for k, v in given.items() if k != "weights" and (k not in defaults or v != defaults[k])}
    network.options = {**network.options, **changed}
    return network
