"""Nearest-neighbour balls, exactly as in float64 and nearly as fast as in float32, in blocks.

A ball around each point of a set reaches to its k-th neighbour. Which points lie in which balls is decided on float32
products with a rigorous bound on their error (Higham 2002, eq. 3.5); the pairs that the bound leaves undecided are
computed again in float64. So equal distances stay equal, copies are at distance zero, and the figures are those of
float64 throughout.

Shapes: n and m points, d features, c candidates, p pairs. Distances are squared.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from dit_shd.core.precision import true_float32
from dit_shd.core.progress import progress_bar

SPARE = 8
"""Neighbours kept beyond the k-th while rounding leaves their order open."""
PAIRS = 2048
"""Number of pairs whose distances are computed again at once."""


@dataclass(frozen=True)
class Manifold:
    """Two sets of points in each other's balls."""

    sample_inside: Tensor
    """[n], whether a sample lies in a ball of the reference."""
    reference_inside: Tensor
    """[m], whether a reference point lies in a ball of the samples."""
    counts: Tensor
    """[m], number of samples in each reference ball of density and coverage."""


@true_float32()
def manifold(samples: Tensor, reference: Tensor, k: int, density_k: int, block: int = 1024) -> Manifold:
    """Which samples [n,d] lie in the balls of the reference [m,d] to the k-th neighbour, and the other way round."""
    frame = _Frame.around(samples, reference)
    x, y = _Low(samples, frame), _Low(reference, frame)
    (sample_radii,) = _radii(x, (k,), block, "samples")
    reference_radii, density_radii = _radii(y, (k, density_k), block, "reference")
    rows_up, columns_up = frame.up(sample_radii), frame.up(torch.maximum(reference_radii, density_radii))
    sample_inside = torch.zeros(len(samples), dtype=torch.bool, device=samples.device)
    reference_inside = torch.zeros(len(reference), dtype=torch.bool, device=samples.device)
    counts = torch.zeros(len(reference), dtype=torch.long, device=samples.device)
    for i in _shown(len(samples), block, "samples in balls of the reference"):
        left = x[i]
        for j in _blocks(len(reference), block):
            lower = frame.lower(left, y[j])
            near = (lower <= torch.maximum(rows_up[i, None], columns_up[None, j])).nonzero()
            rows, columns = (near + torch.tensor([i.start, j.start], device=near.device)).unbind(1)
            least = lower[near[:, 0], near[:, 1]]
            radii_of = (reference_radii[columns], sample_radii[rows], density_radii[columns])
            precise, recalled, dense = _inside(x, y, rows, columns, least, radii_of)
            sample_inside[rows[precise]] = True
            reference_inside[columns[recalled]] = True
            counts += torch.bincount(columns[dense], minlength=len(reference))
    return Manifold(sample_inside, reference_inside, counts)


def exact_distances(a: Tensor, b: Tensor) -> Tensor:
    """[p]: |a_i - b_i|^2 of rows [p,d], by differences in float64."""
    return (a.double() - b.double()).square_().sum(-1)


@dataclass(frozen=True)
class _Frame:
    """The origin and the unit of the float32 points, and a bound on the error of their distances."""

    centre: Tensor
    unit: float
    slack: float
    """The error of a distance is at most slack times the sum of the two squared norms: rounding of a product of d
    terms (d u, u the unit roundoff), of centring, and of the norms, twice over."""

    @classmethod
    def around(cls, *sets: Tensor) -> "_Frame":
        total = torch.stack([points.sum(0, dtype=torch.float64) for points in sets]).sum(0)
        centre = (total / sum(map(len, sets))).to(sets[0].dtype)
        ends = torch.stack([end - centre for points in sets for end in points.aminmax(dim=0)])
        unit = 2.0 ** math.ceil(math.log2(float(ends.abs().max()) or 1.0))
        return cls(centre, unit, (len(centre) + 16) * torch.finfo(torch.float32).eps)

    def lower(self, a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Tensor:
        """[n,m]: lower bounds of the distances of rows [n,d] with norms [n] and rows [m,d] with norms [m]."""
        shrink = 1 - self.slack
        distance = torch.addmm(b[1] * shrink, a[0], b[0].T, alpha=-2)
        return distance.add_((a[1] * shrink)[:, None])

    def up(self, distances: Tensor) -> Tensor:
        """Exact distances in the frame's unit, rounded upwards to float32."""
        low = (distances / self.unit**2).float()
        return torch.nextafter(low, torch.full_like(low, torch.inf))


class _Low:
    """A set of points in float32, centred and scaled block by block, with its squared norms."""

    def __init__(self, points: Tensor, frame: _Frame) -> None:
        self.points, self.frame = points, frame
        self.norms = torch.cat([self._rows(block).double().square_().sum(1) for block in points.split(PAIRS)]).float()

    def __getitem__(self, where: slice) -> tuple[Tensor, Tensor]:
        return self._rows(self.points[where]), self.norms[where]

    def _rows(self, points: Tensor) -> Tensor:
        return (points - self.frame.centre).float().mul_(1 / self.frame.unit)


def _radii(low: _Low, ks: tuple[int, ...], block: int, what: str) -> list[Tensor]:
    """For each k [n]: each point's (k+1)-th smallest squared distance within the set, itself counted, in float64.

    The matrix of distances is symmetric, so each pair of blocks is computed once and serves both.
    """
    n, kept = len(low.points), min(len(low.points), max(ks) + 1 + SPARE)
    lowest = torch.full((n, kept), torch.inf, device=low.points.device)
    which = torch.zeros((n, kept), dtype=torch.long, device=low.points.device)
    for i in _shown(n, block, f"neighbours among the {what}"):
        left = low[i]
        for j in _blocks(n, block):
            if j.start < i.start:
                continue
            lower = low.frame.lower(left, low[j])
            lowest[i], which[i] = _merge(lowest[i], which[i], lower, j.start)
            if i != j:
                lowest[j], which[j] = _merge(lowest[j], which[j], lower.T.contiguous(), i.start)
    return [_exact_radii(low, lowest, which, k) for k in ks]


def _exact_radii(low: _Low, lowest: Tensor, which: Tensor, k: int) -> Tensor:
    """The radii to the k-th neighbour from the candidates [n,c] with the lowest lower bounds.

    A candidate certainly nearer than the (k+1)-th is counted, one certainly farther is left out, the others are
    computed in float64. Where a point that is no candidate could still be nearer, so are all points of the row.
    """
    points = low.points
    upper = lowest + 2 * low.frame.slack * (low.norms[:, None] + low.norms[which])
    least, most = lowest.sort(1).values[:, k, None], upper.sort(1).values[:, k, None]
    nearer = upper < least
    rows, columns = ((lowest <= most) & ~nearer).nonzero(as_tuple=True)
    distances = torch.full(lowest.shape, torch.inf, dtype=torch.float64, device=points.device)
    distances[rows, columns] = _exact(points, points, rows, which[rows, columns])
    exact = distances.sort(1).values.gather(1, (k - nearer.sum(1))[:, None])[:, 0]
    if lowest.shape[1] < len(points):
        sure = (low.frame.up(exact) < lowest.amax(1)) | (exact == 0)
        for row in (~sure).nonzero()[:, 0].tolist():
            every = [exact_distances(block, points[row]) for block in points.split(PAIRS)]
            exact[row] = torch.cat(every).kthvalue(k + 1).values
    return exact


def _inside(
    x: _Low, y: _Low, rows: Tensor, columns: Tensor, least: Tensor, radii_of: tuple[Tensor, ...]
) -> list[Tensor]:
    """For each set of radii [p], whether the pairs x[rows], y[columns] are within them; on the sphere is inside.

    `least` [p] are lower bounds of the distances, in the frame's unit.
    """
    frame = x.frame
    most = (least + 2 * frame.slack * (x.norms[rows] + y.norms[columns])).double() * frame.unit**2
    maybe = torch.stack([(most > radius) & (least <= frame.up(radius)) for radius in radii_of]).any(0)
    most[maybe] = _exact(x.points, y.points, rows[maybe], columns[maybe])
    return [most <= radius for radius in radii_of]


def _exact(a: Tensor, b: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """[p]: the exact distances of a[rows] and b[columns], PAIRS at a time."""
    blocks = [exact_distances(a[r], b[c]) for r, c in zip(rows.split(PAIRS), columns.split(PAIRS))]
    return torch.cat(blocks) if blocks else torch.empty(0, dtype=torch.float64, device=a.device)


def _merge(lowest: Tensor, which: Tensor, distances: Tensor, start: int) -> tuple[Tensor, Tensor]:
    """The c lowest of the candidates so far and of a block [n,b] whose first column is point `start`."""
    c = lowest.shape[1]
    values, columns = distances.topk(min(c, distances.shape[1]), dim=1, largest=False, sorted=False)
    values, indices = torch.cat([lowest, values], 1).topk(c, dim=1, largest=False)
    return values, torch.cat([which, columns + start], 1).gather(1, indices)


def _shown(n: int, block: int, desc: str) -> Iterator[slice]:
    """The blocks, with a bar where they take their time."""
    with progress_bar(n, "point", desc, delay=2) as bar:
        for rows in _blocks(n, block):
            yield rows
            bar.update(rows.stop - rows.start)


def _blocks(n: int, block: int) -> Iterator[slice]:
    return (slice(start, min(start + block, n)) for start in range(0, n, block))
