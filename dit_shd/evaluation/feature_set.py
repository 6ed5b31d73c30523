"""Features of a set of images, and their mean and covariance."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from dit_shd.core.errors import UserError


@dataclass(frozen=True)
class Statistics:
    """Mean and covariance of n vectors of d features."""

    n: int
    """0 where a statistics file does not say."""
    mean: Tensor
    """[d] in float64."""
    covariance: Tensor
    """[d,d] in float64."""
    rows: Tensor | None = None
    """[n,d], the vectors themselves if n <= d, as an exact factor of a singular covariance; else None."""

    @classmethod
    def of(cls, rows: Tensor) -> "Statistics":
        """The statistics of rows [n,d] of any float type."""
        moments = Moments()
        moments.add(rows)
        return moments.statistics()

    def to(self, device: torch.device) -> "Statistics":
        """The same on another device."""
        rows = None if self.rows is None else self.rows.to(device)
        return Statistics(self.n, self.mean.to(device), self.covariance.to(device), rows)


class Moments:
    """Mean and covariance of rows that arrive in pieces, in float64 (Chan, Golub & LeVeque 1979, eq. 2.1).

    Rows are folded in blocks of `block` rows, so the result does not depend on the pieces. Each block is centred on
    its own mean before it is merged, so that nothing cancels however far the mean is from zero.
    """

    def __init__(self, block: int = 4096) -> None:
        self.block = block
        self._folded = 0
        self._mean: Tensor | None = None
        self._scatter: Tensor | None = None
        self._pending: list[Tensor] = []
        self._count = 0

    @property
    def n(self) -> int:
        """Number of rows so far."""
        return self._folded + self._count

    def add(self, rows: Tensor) -> None:
        """Take in rows [b,d] of any float type."""
        while len(rows):
            piece = rows[: self.block - self._count]
            self._pending.append(piece)
            self._count += len(piece)
            rows = rows[len(piece) :]
            if self._count == self.block:
                self._fold()

    def statistics(self) -> Statistics:
        """The statistics of all rows so far; the covariance is divided by n - 1, as numpy.cov and ADM do.

        Raises:
            UserError: Fewer than two rows.
        """
        if self.n < 2:
            raise UserError(f"wanted at least 2 images for a covariance, found {self.n}")
        singular = not self._folded and self._count <= self._pending[0].shape[1]
        rows = torch.cat(self._pending) if singular else None
        self._fold()
        assert self._mean is not None
        assert self._scatter is not None
        return Statistics(self.n, self._mean, self._scatter / (self.n - 1), rows)

    def _fold(self) -> None:
        if not self._count:
            return
        rows = torch.cat(self._pending).double()
        self._pending, self._count = [], 0
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
    """The features of a set of images in one network; a reference may be statistics only."""

    statistics: Statistics
    """Of the pooled features [d]. In ADM's file they are of the training set, `pooled` of 10,000 images of it."""
    pooled: Tensor | None = None
    """[n,d] float32, in file order."""
    logits: Tensor | None = None
    """[n,classes] float32 without the last bias, in file order."""
    spatial: Statistics | None = None
    """Of the features of sFID."""
    spatial_rows: Tensor | None = field(default=None, repr=False)
    """[n,s], the features of sFID, kept only if images are to be resampled."""
    title: str = "features"
    """Of the network, for the names of figures."""
    is_fid: bool = False
    """Whether the network is the 2015 Inception."""
    texts: Tensor | None = field(default=None, repr=False)
    """[n,d], what the network makes of the prompt of each image, in file order."""
    prompts: Tensor | None = field(default=None, repr=False)
    """Int64 [n], which one of the different prompts, from 0, each image is of; those of one are drawn together."""
    cut: int = 0
    """How many prompts are longer than what the network reads."""
    network: str = ""
    """The identity of the network; empty where it is not known."""
    balanced: bool = False
    """Whether the images are known to be as many of each of several classes."""

    @classmethod
    def of(
        cls,
        pooled: Tensor,
        logits: Tensor | None = None,
        title: str = "features",
        is_fid: bool = False,
        spatial: Tensor | None = None,
    ) -> "FeatureSet":
        """The set with these features, each [n,...] in file order.

        Raises:
            UserError: Fewer than two images, or features that are not finite.
        """
        for rows in (pooled, logits, spatial):
            if rows is not None:
                require_finite(rows, title)
        spatial_statistics = None if spatial is None else Statistics.of(spatial)
        return cls(Statistics.of(pooled), pooled, logits, spatial_statistics, spatial, title, is_fid)

    def to(self, device: torch.device) -> "FeatureSet":
        """The same on another device."""
        moved = {name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor | Statistics)}
        return replace(self, **moved)

    def named(self, figure: str) -> str:
        """A figure's name: unchanged with the 2015 Inception, with the network's title for any other."""
        return figure if self.is_fid else f"{figure}({self.title})"

    def require_pooled(self, metric: str) -> Tensor:
        """The features [n,d].

        Raises:
            UserError: There are only statistics; the message says that `metric` needs more.
        """
        if self.pooled is None:
            raise UserError(
                f"{metric}: wanted a reference with images, found only statistics; "
                "add arr_0 to the file or give another reference"
            )
        return self.pooled


def require_finite(rows: Tensor, title: str, first: int = 0) -> None:
    """Refuse features [b,d] that are nan or infinite; `first` is the number of the first image.

    Raises:
        UserError: Naming the image.
    """
    finite = torch.isfinite(rows).all(1)
    if not finite.all():
        bad = first + int((~finite).nonzero()[0])
        raise UserError(f"features {title}: image {bad} has features that are not finite; check the network's weights")
