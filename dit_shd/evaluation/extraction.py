"""One pass of a feature network over a set of images, with everything the metrics need."""

import torch
from torch import Tensor
from tqdm import tqdm

from dit_shd.core.errors import UserError
from dit_shd.data.image_sets import ImageSet
from dit_shd.evaluation.feature_set import FeatureSet, Moments, require_finite
from dit_shd.evaluation.features import FeatureNetwork, Features


def extract_features(
    network: FeatureNetwork, images: ImageSet, batch_size: int = 64, keep_spatial: bool = False
) -> FeatureSet:
    """Run the network once over the images, in order; a bar shows on a terminal.

    Mean and covariance are summed as the images pass, in float64. Pooled features and logits are kept, the spatial
    ones only for `keep_spatial`.

    Raises:
        UserError: fewer than two images, images the network does not read, features that are not finite.
    """
    pooled = _Kept(images.shape[0])
    logits = _Kept(images.shape[0])
    spatial = _Kept(images.shape[0])
    moments, spatial_moments = Moments(), Moments()
    with tqdm(total=images.shape[0], unit="image", desc=f"features of {images.name}", disable=None) as bar:
        for batch in images.batches(batch_size):
            found = _checked(network.extract(batch), network.title, moments.n)
            moments.add(found.pooled)
            pooled.add(found.pooled)
            logits.add(found.logits)
            if found.spatial is not None:
                spatial_moments.add(found.spatial)
                spatial.add(found.spatial if keep_spatial else None)
            bar.update(len(batch))
    return FeatureSet(
        statistics=moments.statistics(),
        pooled=pooled.rows,
        logits=logits.rows,
        spatial=spatial_moments.statistics() if spatial_moments.n else None,
        spatial_rows=spatial.rows,
        title=network.title,
        is_fid=network.is_fid,
    )


def find_device(name: str) -> torch.device:
    """`auto` is a CUDA GPU if there is one.

    Raises:
        UserError: no such device, or one without float64.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, dtype=torch.float64, device=device)
    except (RuntimeError, TypeError, AssertionError) as error:
        reason = str(error).splitlines()[0][:80]
        raise UserError(
            f"device: wanted auto or a device with float64, found '{name}' ({reason}); try device=cpu"
        ) from error
    return device


class _Kept:
    """Rows [n, ...] in float32 that arrive in batches, without ever being held twice."""

    def __init__(self, n: int) -> None:
        self.rows: Tensor | None = None
        self._n, self._filled = n, 0

    def add(self, batch: Tensor | None) -> None:
        if batch is None:
            return
        if self.rows is None:
            self.rows = torch.empty((self._n, *batch.shape[1:]), device=batch.device)
        self.rows[self._filled : self._filled + len(batch)] = batch
        self._filled += len(batch)


def _checked(found: Features, title: str, first: int) -> Features:
    for rows in (found.pooled, found.logits, found.spatial):
        if rows is not None:
            require_finite(rows, title, first)
    return found
