"""Metrics: figures that compare a set of samples with a reference set, in the features of one network.

One file here is one metric, called by its file name. `FeatureSet` is all a metric sees of a set of images.

Shapes: n images, d pooled features. Statistics are float64; products of large matrices run in blocks.
"""

import abc
from dataclasses import dataclass

import torch
from torch import Tensor

from dit_shd.errors import UserError


class Moments:
    """Mean and covariance of rows that arrive in blocks, in float64 (Chan, Golub & LeVeque 1979, eq. 2.1).

    The blocks are merged, each centred on its own mean first, so nothing cancels however far the mean is
    from zero.
    """

    def __init__(self) -> None:
        self.n = 0
        self._mean: Tensor | None = None
        self._scatter: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        """Take in rows [b, d] of any float type."""
        if len(rows) == 0:
            return
        rows = rows.double()
        mean = rows.mean(0)
        centred = rows - mean
        scatter = centred.T @ centred
        if self._mean is None or self._scatter is None:
            self.n, self._mean, self._scatter = len(rows), mean, scatter
            return
        total = self.n + len(rows)
        delta = mean - self._mean
        self._scatter += scatter + torch.outer(delta, delta) * (self.n * len(rows) / total)
        self._mean = self._mean + delta * (len(rows) / total)
        self.n = total

    def mean(self) -> Tensor:
        """[d]; needs one row."""
        assert self._mean is not None, "no rows were added"
        return self._mean

    def covariance(self) -> Tensor:
        """[d, d], divided by n - 1 as numpy.cov and ADM do; needs two rows."""
        assert self._scatter is not None, "no rows were added"
        assert self.n > 1, "a covariance needs two rows"
        return self._scatter / (self.n - 1)


@dataclass(frozen=True)
class FeatureSet:
    """A set of images as a feature network sees it; a reference may be statistics only.

    n: images behind mean and covariance, 0 where a statistics file does not say.
    mean [d], covariance [d, d]: float64.
    pooled [m, d] float32 in file order, or None; m is n, or another count where a file brings statistics of
        one set and images of another (ADM's: the whole training set, and 10,000 images).
    logits [m, classes] float32 without the last bias, or None, in file order.
    title, is_fid: of the network, for the names of figures.
    separate_statistics: mean and covariance are not those of `pooled`.
    """

    n: int
    mean: Tensor
    covariance: Tensor
    pooled: Tensor | None = None
    logits: Tensor | None = None
    title: str = "features"
    is_fid: bool = False
    separate_statistics: bool = False

    @classmethod
    def of(
        cls,
        pooled: Tensor,
        logits: Tensor | None = None,
        title: str = "features",
        is_fid: bool = False,
        block: int = 4096,
    ) -> "FeatureSet":
        """The set with these features [n, d]; its statistics are computed `block` rows at a time.

        Raises:
            UserError: fewer than two images, or features that are not finite.
        """
        if len(pooled) < 2:
            raise UserError(f"wanted at least 2 images for a covariance, found {len(pooled)}")
        finite = torch.isfinite(pooled).all(1)
        if logits is not None:
            finite &= torch.isfinite(logits).all(1)
        if not finite.all():
            bad = int((~finite).nonzero()[0])
            raise UserError(
                f"features {title}: image {bad} has features that are not finite; check the network's weights"
            )
        moments = Moments()
        for rows in pooled.split(block):
            moments.add(rows)
        return cls(moments.n, moments.mean(), moments.covariance(), pooled, logits, title, is_fid)

    def require_pooled(self, metric: str) -> Tensor:
        """The features, or the error that says why `metric` needs them."""
        if self.pooled is None:
            raise UserError(
                f"{metric}: wanted a reference with images, found only statistics; "
                "add arr_0 to the file or give another reference"
            )
        return self.pooled


class Metric(abc.ABC):
    """A figure, or a few that are computed together.

    minimum: images needed in each set; needs_logits: the network must classify; needs_reference_images: a
    reference that is only statistics will not do. The evaluator checks these before it runs the network.
    """

    minimum: int = 2
    needs_logits: bool = False
    needs_reference_images: bool = False

    @abc.abstractmethod
    def compute(self, samples: FeatureSet, reference: FeatureSet) -> dict[str, float]:
        """Figures by name. With another network than the 2015 Inception, FD and IS carry its title."""
