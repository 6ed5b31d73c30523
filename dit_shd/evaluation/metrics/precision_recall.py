"""The share of the samples that is like the reference, and the share of the reference that they cover.

Improved precision and recall (Kynkäänniemi et al., arXiv 1904.06991, eqs. 1 to 3): the share of samples inside the
reference, and of the reference inside the samples. A point is inside a set when it lies in the ball around one of
the set's points that reaches to that point's k-th neighbour. As in ADM's evaluator, the radius is the (k+1)-th
smallest squared distance with the point itself counted, and a point on the sphere is inside. ADM rounds distances to
float16; here the decisions are those of float64.

Density and coverage (Naeem et al., arXiv 2002.09797, eqs. 3 and 4), with balls of the reference only, so that an
outlier among the samples cannot help: the mean number of reference balls a sample lies in, divided by k, and the
share of reference balls with a sample in them. All four come from the same distances, in blocks: memory grows with
n, not with n^2.
"""

from torch import Tensor

from dit_shd.core.errors import UserError
from dit_shd.evaluation.feature_set import FeatureSet
from dit_shd.evaluation.metrics import Metric
from dit_shd.evaluation.neighbours import Manifold, manifold


class PrecisionRecall(Metric):
    """Precision, recall and coverage in [0, 1], and density, which may be above 1.

    Args:
        k: The neighbour that gives a ball's radius, of precision and recall.
        density_k: The same, of density and coverage.
        block: Rows and columns of one block of distances.
    """

    needs_reference_images = True
    not_resampled = ("recall", "coverage")
    lowest = 0.0
    shares = ("precision", "recall", "coverage")

    def __init__(self, k: int = 3, density_k: int = 5, block: int = 1024) -> None:
        for name, value in (("k", k), ("density_k", density_k), ("block", block)):
            if value < 1:
                raise UserError(f"metrics.precision_recall.{name}: wanted at least 1, found {value}")
        self.k, self.density_k, self.block = k, density_k, block
        self.minimum = max(k, density_k) + 1

    def compute(self, samples: FeatureSet, reference: FeatureSet) -> dict[str, float]:
        """Precision, recall, density and coverage."""
        return self.details(samples, reference)[0]

    def details(self, samples: FeatureSet, reference: FeatureSet) -> tuple[dict[str, float], dict[str, Tensor]]:
        """The figures, and for each image whether it is inside: `sample_inside` [n], `reference_inside` [m]."""
        x, y = samples.require_pooled("precision_recall"), reference.require_pooled("precision_recall")
        balls = self.manifold(x, y)
        figures = {
            "precision": float(balls.sample_inside.double().mean()),
            "recall": float(balls.reference_inside.double().mean()),
            "density": float(balls.counts.double().sum() / (self.density_k * len(x))),
            "coverage": float((balls.counts > 0).double().mean()),
        }
        return figures, {"sample_inside": balls.sample_inside, "reference_inside": balls.reference_inside}

    def manifold(self, samples: Tensor, reference: Tensor) -> Manifold:
        """Which points of samples [n,d] and reference [m,d] lie in balls of the other set.

        Raises:
            UserError: A set with too few images, or different numbers of features on the two sides.
        """
        for name, rows in (("samples", samples), ("reference", reference)):
            if len(rows) < self.minimum:
                raise UserError(
                    f"precision_recall: wanted at least {self.minimum} images in {name} (more than k), "
                    f"found {len(rows)}"
                )
        if samples.shape[1] != reference.shape[1]:
            raise UserError(
                "precision_recall: wanted as many features on both sides, "
                f"found {samples.shape[1]} and {reference.shape[1]}"
            )
        return manifold(samples, reference, self.k, self.density_k, self.block)
