"""One pass of a feature network over a set of images, which gives everything that metrics use."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dit_shd.core.progress import progress_bar
from dit_shd.data.image_sets import ImageSet
from dit_shd.evaluation.feature_set import FeatureSet, Moments, require_finite
from dit_shd.evaluation.features import FeatureNetwork, Features


def extract_features(
    network: FeatureNetwork, images: ImageSet, batch_size: int = 64, keep_spatial: bool = False
) -> FeatureSet:
    """Run the network once over the images, in order, with a progress bar.

    Mean and covariance are summed in float64 batch by batch. Pooled features and logits are kept, spatial features
    only for `keep_spatial`.

    Raises:
        UserError: Fewer than two images, images the network does not read, features that are not finite.
    """
    pooled = _Rows(images.shape[0])
    logits = _Rows(images.shape[0])
    spatial = _Rows(images.shape[0])
    moments, spatial_moments = Moments(), Moments()
    prompts = images.prompts
    texts, cut = (None, 0) if prompts is None or not network.reads_text else network.embed(prompts)
    with progress_bar(images.shape[0], "image", f"features of {images.name}") as bar:
        for batch in images.batches(batch_size):
            features = _checked(network.extract(batch), network.title, moments.n)
            moments.add(features.pooled)
            pooled.add(features.pooled)
            logits.add(features.logits)
            if features.spatial is not None:
                spatial_moments.add(features.spatial)
                spatial.add(features.spatial if keep_spatial else None)
            bar.update(len(batch))
    return FeatureSet(
        statistics=moments.statistics(),
        pooled=pooled.rows,
        logits=logits.rows,
        spatial=spatial_moments.statistics() if spatial_moments.n else None,
        spatial_rows=spatial.rows,
        texts=texts,
        prompts=None if prompts is None else _numbered(prompts),
        cut=cut,
        title=network.title,
        network=network.identity,
        is_fid=network.is_fid,
        balanced=prompts is None and _are_balanced(images.labels),
    )


def _numbered(prompts: Sequence[str]) -> Tensor:
    """The number of each prompt among the different ones, int64 [n], in the order in which they come."""
    numbers = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    return torch.tensor([numbers[prompt] for prompt in prompts])


def _are_balanced(labels: np.ndarray | None) -> bool:
    counts = np.unique(labels, return_counts=True)[1] if labels is not None else np.zeros(0)
    return len(counts) > 1 and bool(1 < counts.max() <= counts.min() + 1)


class _Rows:
    """Rows [n,...] in float32 that arrive in batches and are never held twice."""

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


def _checked(features: Features, title: str, first: int) -> Features:
    for rows in (features.pooled, features.logits, features.spatial):
        if rows is not None:
            require_finite(rows, title, first)
    return features
