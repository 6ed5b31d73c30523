"""Features of a set of images, and their mean and covariance."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from dit_shd.core.errors import UserError


@dataclass(frozen=True)
class Statistics:
    """Mean and covariance of n vectors of d features.

    n: 0 where a statistics file does not say; mean [d], covariance [d, d]: float64.
    rows [n, d]: the vectors themselves where they are few (n <= d), so that a singular covariance has an exact
        factor; else None.
    """

    n: int
    mean: Tensor
    covariance: Tensor
    rows: Tensor | None = None

    @classmethod
    def of(cls, rows: Tensor) -> "Statistics":
        """Of rows [n, d] of any float type."""
        moments = Moments()
        moments.add(rows)
        return moments.statistics()

    def to(self, device: torch.device) -> "Statistics":
        """The same on another device."""
        rows = None if self.rows is None else self.rows.to(device)
        return Statistics(self.n, self.mean.to(device), self.covariance.to(device), rows)


class Moments:
    """Mean and covariance of rows that arrive in pieces, in float64 (Chan, Golub & LeVeque 1979, eq. 2.1).

    Rows are folded in blocks of `block`, whatever the pieces, so the result does not depend on them. The blocks are
    merged, each centred on its own mean first, so nothing cancels however far the mean is from zero.
    """

    def __init__(self, block: int = 4096) -> None:
        self.block = block
        self._folded = 0
        self._mean: Tensor | None = None
        self._scatter: Tensor | None = None
        self._waiting: list[Tensor] = []
        self._count = 0

    @property
    def n(self) -> int:
        """Rows so far."""
        return self._folded + self._count

    def add(self, rows: Tensor) -> None:
        """Take in rows [b, d] of any float type."""
        while len(rows):
            part = rows[: self.block - self._count]
            self._waiting.append(part)
            self._count += len(part)
            rows = rows[len(part) :]
            if self._count == self.block:
                self._fold()

    def statistics(self) -> Statistics:
        """Of all rows so far; the covariance is divided by n - 1, as numpy.cov and ADM do.

        Raises:
            UserError: fewer than two rows.
        """
        if self.n < 2:
            raise UserError(f"wanted at least 2 images for a covariance, found {self.n}")
        few = torch.cat(self._waiting) if not self._folded and self._count <= self._waiting[0].shape[1] else None
        self._fold()
        assert self._mean is not None
        assert self._scatter is not None
        return Statistics(self.n, self._mean, self._scatter / (self.n - 1), few)

    def _fold(self) -> None:
        if not self._count:
            return
        rows = torch.cat(self._waiting).double()
        self._waiting, self._count = [], 0
        mean = rows.mean(0)
        rows -= mean
        scatter = rows.T @ rows
        if self._mean is None or self._scatter is None:
            self._folded, self._mean, self._scatter = len(rows), mean, scatter
            return
        total = self._folded + len(rows)
        delta = mean - self._mean
        self._scatter += scatter
        self._scatter += torch.outer(delta, delta * (self._folded * len(rows) / total))
        self._mean = self._mean + delta * (len(rows) / total)
        self._folded = total


@dataclass(frozen=True)
class FeatureSet:
    """A set of images as a feature network sees it; a reference may be statistics only.

    statistics: of the pooled features [d]. In ADM's file they are of the whole training set, while `pooled` are
        of 10,000 images of it.
    pooled [m, d] float32 in file order, or None.
    logits [m, classes] float32 without the last bias, or None, in file order.
    spatial: statistics of the features of sFID, or None.
    spatial_rows: those features themselves, kept only where images are to be resampled.
    title, is_fid: of the network, for the names of figures.
    """

    statistics: Statistics
    pooled: Tensor | None = None
    logits: Tensor | None = None
    spatial: Statistics | None = None
    spatial_rows: Tensor | None = field(default=None, repr=False)
    title: str = "features"
    is_fid: bool = False

    @classmethod
    def of(
        cls,
        pooled: Tensor,
        logits: Tensor | None = None,
        title: str = "features",
        is_fid: bool = False,
        spatial: Tensor | None = None,
    ) -> "FeatureSet":
        """The set with these features, each [n, ...] in file order.

        Raises:
            UserError: fewer than two images, or features that are not finite.
        """
        for rows in (pooled, logits, spatial):
            if rows is not None:
                require_finite(rows, title)
        about = None if spatial is None else Statistics.of(spatial)
        return cls(Statistics.of(pooled), pooled, logits, about, spatial, title, is_fid)

    def to(self, device: torch.device) -> "FeatureSet":
        """The same on another device."""
        moved = {name: part.to(device) for name, part in vars(self).items() if isinstance(part, Tensor | Statistics)}
        return replace(self, **moved)

    def named(self, figure: str) -> str:
        """A figure's name: as it is with the 2015 Inception, with the network's title for any other."""
        return figure if self.is_fid else f"{figure}({self.title})"

    def require_pooled(self, metric: str) -> Tensor:
        """The features, or the error that says why `metric` needs them."""
        if self.pooled is None:
            raise UserError(
                f"{metric}: wanted a reference with images, found only statistics; "
                "add arr_0 to the file or give another reference"
            )
        return self.pooled


def require_finite(rows: Tensor, title: str, first: int = 0) -> None:
    """Refuse features [b, d] that are nan or infinite; `first` is the number of the first image.

    Raises:
        UserError: naming the image.
    """
    finite = torch.isfinite(rows).all(1)
    if not finite.all():
        bad = first + int((~finite).nonzero()[0])
        raise UserError(f"features {title}: image {bad} has features that are not finite; check the network's weights")
