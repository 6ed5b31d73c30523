"""Frechet distance between two sets of features: FID with the 2015 Inception (arXiv 1706.08500, eq. 6).

    d^2 = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)        (Dowson & Landau 1982, eq. 4)

With S = F F' for any factor F, S1 S2 has the nonzero eigenvalues of (F1' F2)(F1' F2)', so the last trace is
the sum of the singular values of F1' F2. That holds for singular covariances too (fewer images than features,
dead features).
"""

import torch
from torch import Tensor

from dit_shd.core.errors import UserError
from dit_shd.evaluation.feature_set import FeatureSet, Statistics
from dit_shd.evaluation.metrics import Metric

WELL_CONDITIONED = 1e-10
"""Smallest ratio of Cholesky pivots for which the fast path is taken."""
PUBLISHED = 50_000
"""Number of samples behind a published FID."""


class Frechet(Metric):
    """FID, or FD(title) for any other network; rounding below zero is cut off."""

    lowest = 0.0

    def compute(self, samples: FeatureSet, reference: FeatureSet) -> dict[str, float]:
        """The Frechet distance of the pooled features."""
        name = "FID" if samples.is_fid else f"FD({samples.title})"
        return {name: max(0.0, frechet_distance(samples.statistics, reference.statistics))}

    def notes(self, samples: FeatureSet, reference: FeatureSet) -> list[str]:
        """Sets that are too small for an unbiased distance."""
        n, d = samples.statistics.n, len(samples.statistics.mean)
        notes = []
        if samples.is_fid and n != PUBLISHED:
            notes.append(f"{n:,} samples: published FID is of {PUBLISHED:,}, and fewer samples raise it")
        for name, count in (("samples", n), ("reference images", reference.statistics.n)):
            if 0 < count <= d:
                notes.append(f"{count} {name} for {d} features: a singular covariance, a strongly biased distance")
        return notes


def frechet_distance(one: Statistics, two: Statistics) -> float:
    """The squared distance d^2, in float64; for equal sets rounding may leave it just below zero.

    Raises:
        UserError: The two sets have different numbers of features.
    """
    if one.mean.shape != two.mean.shape:
        raise UserError(
            f"frechet: wanted as many features on both sides, found {len(one.mean)} and {len(two.mean)}; "
            "use one feature network for both"
        )
    difference = one.mean - two.mean
    traces = one.covariance.trace() + two.covariance.trace()
    return float(difference @ difference + traces - 2 * trace_sqrt_product(one, two))


def trace_sqrt_product(one: Statistics, two: Statistics) -> Tensor:
    """The trace tr (S1 S2)^(1/2), exact for singular covariances.

    If both are regular: eigenvalues of L' S2 L with S1 = L L', L lower. Otherwise: singular values of F1' F2.
    """
    lower_one, lower_two = _cholesky(one), _cholesky(two)
    if lower_one is not None and lower_two is not None:
        return torch.linalg.eigvalsh(lower_one.T @ two.covariance @ lower_one).clamp(min=0).sqrt().sum()
    factor_one = _factor(one) if lower_one is None else lower_one
    factor_two = _factor(two) if lower_two is None else lower_two
    return torch.linalg.svdvals(factor_one.T @ factor_two).sum()


def _cholesky(statistics: Statistics) -> Tensor | None:
    """L [d,d], lower, with S = L L'; None where S is singular or nearly so."""
    if 0 < statistics.n <= len(statistics.mean):
        return None
    lower, failed = torch.linalg.cholesky_ex(statistics.covariance)
    pivots = lower.diagonal().square()
    if failed or pivots.min() < WELL_CONDITIONED * pivots.max():
        return None
    return lower


def _factor(statistics: Statistics) -> Tensor:
    """F [d,r] with S = F F': the centred features if there are fewer than d, else from the eigenvectors."""
    if statistics.rows is not None:
        return (statistics.rows.double() - statistics.mean).T / (statistics.n - 1) ** 0.5
    values, vectors = torch.linalg.eigh(statistics.covariance)
    noise = len(values) * torch.finfo(values.dtype).eps * values[-1]
    return vectors * torch.where(values > noise, values, 0).sqrt()
