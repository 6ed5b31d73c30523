"""sFID (Nash et al., arXiv 2103.03841, section 5): the Frechet distance of features that keep their positions.

As in ADM's evaluator: the first 7 channels of a 17 x 17 layer of the 2015 Inception, 2,023 values an image (see
dit_shd.evaluation.features.inception). The statistics file of a reference holds them as mu_s and sigma_s.
"""

from dit_shd.core.errors import UserError
from dit_shd.evaluation.feature_set import FeatureSet
from dit_shd.evaluation.metrics import Metric
from dit_shd.evaluation.metrics.frechet import frechet_distance


class SpatialFrechet(Metric):
    """sFID, or sFD(title) for another network that has spatial features."""

    needs_spatial = True
    lowest = 0.0

    def compute(self, samples: FeatureSet, reference: FeatureSet) -> dict[str, float]:
        """The Frechet distance of the spatial features."""
        if samples.spatial is None or reference.spatial is None:
            side = "samples" if samples.spatial is None else "reference"
            raise UserError(f"spatial_frechet: wanted spatial features on both sides, found none in the {side}")
        name = "sFID" if samples.is_fid else f"sFD({samples.title})"
        return {name: max(0.0, frechet_distance(samples.spatial, reference.spatial))}
