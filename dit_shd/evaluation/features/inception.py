"""The Inception network of FID: torch-fidelity's `inception-v3-compat`.

It is a port of the 2015-12-05 graph that ADM's evaluator runs, and resizes to 299 x 299 inside as TF1 did, so its
input is raw uint8. As in ADM's evaluator, pooled features are pool_3 (2048); logits are pool_3 @ W without bias
(1008 classes), the ones of the Inception Score; spatial features, those of sFID, are the first 7 channels of
`mixed_6/conv` (17 x 17), flattened with the channels last: the port's Mixed_6d.branch1x1.

No package ships the weights: they are read from a local file, or downloaded to torch-fidelity's cache, and only
weights with the known hash give FID.
"""

import http.client
import io
import logging
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dit_shd.core.errors import UserError
from dit_shd.evaluation.features import FeatureNetwork, Features
from dit_shd.evaluation.network_weights import match_weights, read_weights

if TYPE_CHECKING:
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3


_log = logging.getLogger("dit_shd")

FILE = "weights-inception-2015-12-05-6726825d.pth"
ADDRESS = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{FILE}"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""Of the 95,628,359 bytes at ADDRESS: the first eight digits are in its name, users have published the others."""

LAYERS = ("2048", "logits_unbiased")
SPATIAL_CHANNELS = 7
TIMEOUT_SECONDS = 30


class Inception(FeatureNetwork):
    """Images [b,y,x,3] of any size, 2048 pooled features, 1008 logits without bias, 2023 spatial features.

    Args:
        weights: The state dict of torch-fidelity's port; if left out, the file in torch hub's cache (where
            torch-fidelity puts it), which is downloaded first if it is missing. Weights other than those of 2015 are
            named inception-<hash> and give FD, not FID.

    Raises:
        UserError: No such file and no download, a file that is not safe to read, or weights of another network.
    """

    channels = 3
    has_spatial = True

    def __init__(self, weights: Path | None = None) -> None:
        path = default_weights() if weights is None else weights
        if weights is None and not path.is_file():
            _download(path)
        advice = f"download {ADDRESS} and pass features.weights=PATH"
        state, self.sha256 = read_weights(path, advice)
        self.is_fid = self.sha256 == SHA256
        self.title = "inception-2015" if self.is_fid else f"inception-{self.sha256[:8]}"
        self.network = _network(state, path, advice)

    def _forward(self, images: Tensor) -> Features:
        maps: list[Tensor] = []
        layer = self.network.get_submodule("Mixed_6d.branch1x1")
        with layer.register_forward_hook(lambda *call: maps.append(call[2])):
            pooled, logits = self.network(images.permute(0, 3, 1, 2))
        return Features(pooled, logits, maps[0][:, :SPATIAL_CHANNELS].permute(0, 2, 3, 1).flatten(1))


def default_weights() -> Path:
    """The file in which torch-fidelity caches the weights: in torch hub's folder of checkpoints."""
    return Path(torch.hub.get_dir()) / "checkpoints" / FILE


def _download(path: Path) -> None:
    """Download the file and check its hash; a partial file is never left.

    Raises:
        UserError: There is no network, or the download has another hash.
    """
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_SECONDS)
    _log.info("downloading %s to %s", ADDRESS, path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(ADDRESS, str(path), hash_prefix=SHA256)
    except (OSError, RuntimeError, http.client.HTTPException) as error:  # urllib's errors are OSErrors
        reason = (str(error).splitlines() or [type(error).__name__])[0][:80]
        raise UserError(
            f"{path}: the weights of FID are not here and could not be downloaded ({reason}); "
            f"download {ADDRESS} and pass features.weights=PATH"
        ) from error
    finally:
        socket.setdefaulttimeout(before)


def _network(state: dict[str, Tensor], path: Path, advice: str) -> "FeatureExtractorInceptionV3":
    """torch-fidelity's module with these tensors.

    Its constructor calls torch.load(weights_only=False), so its input is a file written here, of tensors that were
    read safely and whose names and shapes are already checked.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    match_weights(state, _expected_tensors(), path, advice)
    stream = io.BytesIO()
    torch.save(state, stream)
    stream.seek(0)
    return FeatureExtractorInceptionV3("inception-v3-compat", list(LAYERS), stream)  # type: ignore[arg-type]


def _expected_tensors() -> dict[str, Tensor]:
    """Names and shapes of the network's tensors, without allocating them."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Empty(FeatureExtractorInceptionV3):
        def load_state_dict(self, *_: object, **__: object) -> None:  # type: ignore[override]
            """Load nothing: only names and shapes are read."""

    stream = io.BytesIO()
    torch.save({}, stream)
    stream.seek(0)
    with torch.device("meta"):
        return Empty("inception-v3-compat", list(LAYERS), stream).state_dict()  # type: ignore[arg-type]
