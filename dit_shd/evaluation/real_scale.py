"""How real images score: the scale on which figures of samples are read."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from dit_shd.data.image_sets import spread
from dit_shd.evaluation.feature_set import FeatureSet, Statistics
from dit_shd.evaluation.metrics.frechet import frechet_distance


def real_scale(first: str, samples: FeatureSet, reference: FeatureSet) -> dict[str, Any] | None:
    """The Frechet distance of as many real images as there are samples (at most half of the reference) from the others.

    Args:
        first: The exact name of the first figure, as FD(digits).
        samples: Features of the samples.
        reference: Features of the reference, of which some are spread over it.

    Returns:
        `n`, the number of these images, and `figures`, the distance by its name; None where the first figure is no
        Frechet distance of pooled features, or the samples are compared with statistics of other images than the
        reference has: half of a part of them is no scale for what all of them are compared with.
    """
    x, y = samples.pooled, reference.pooled
    if first.partition("(")[0] not in ("FID", "FD") or x is None or y is None or len(y) < 4:
        return None
    if reference.statistics.n != len(y):
        return None
    count = min(len(x), len(y) // 2)
    chosen = torch.zeros(len(y), dtype=torch.bool, device=y.device)
    chosen[torch.from_numpy(spread(len(y), count)).to(y.device)] = True
    distance = frechet_distance(Statistics.of(y[chosen]), Statistics.of(y[~chosen]))
    return {"n": count, "figures": {first: max(0.0, distance)}}


def shared_scale(records: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """How real images score in several evaluations of one reference; None where one does not say, or says otherwise.

    Args:
        records: Contents of results files.
    """
    scales = [record.get("real") for record in records]
    return scales[0] if scales and all(scale == scales[0] for scale in scales) else None
