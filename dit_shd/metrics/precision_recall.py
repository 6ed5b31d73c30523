"""Improved precision and recall (Kynkäänniemi et al., arXiv 1904.06991, eqs. 1 to 3).

A point is inside a set when it lies in the ball around one of the set's points that reaches to that point's
k-th neighbour. Precision: samples inside the reference. Recall: reference inside the samples. As in ADM's
evaluator, the radius is the (k+1)-th smallest squared distance with the point itself counted, and a point on
the sphere is inside. Distances here are float64 (ADM rounds them to float16), in blocks: memory grows with n,
not with n^2.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from dit_shd.errors import UserError
from dit_shd.metrics import FeatureSet, Metric


class PrecisionRecall(Metric):
    """Precision and recall in [0, 1].

    k: neighbours that set a radius; block: rows of one distance block.
    """

    needs_reference_images = True

    def __init__(self, k: int = 3, block: int = 2048) -> None:
        for name, value in (("k", k), ("block", block)):
            if value < 1:
                raise UserError(f"metrics.precision_recall.{name}: wanted at least 1, found {value}")
        self.k, self.block = k, block
        self.minimum = k + 1

    def compute(self, samples: FeatureSet, reference: FeatureSet) -> dict[str, float]:
        precision, recall = precision_recall(
            samples.require_pooled("precision_recall"),
            reference.require_pooled("precision_recall"),
            self.k,
            self.block,
        )
        return {"precision": precision, "recall": recall}


def precision_recall(samples: Tensor, reference: Tensor, k: int = 3, block: int = 2048) -> tuple[float, float]:
    """Precision and recall of samples [n, d] against reference [m, d].

    Raises:
        UserError: a set of k images or fewer, or another number of features on the two sides.
    """
    for name, rows in (("samples", samples), ("reference", reference)):
        if len(rows) <= k:
            raise UserError(f"precision_recall: wanted more than k = {k} images in {name}, found {len(rows)}")
    if samples.shape[1] != reference.shape[1]:
        raise UserError(
            "precision_recall: wanted as many features on both sides, "
            f"found {samples.shape[1]} and {reference.shape[1]}"
        )
    sample_radii, reference_radii = radii(samples, k, block), radii(reference, k, block)
    sample_inside = torch.zeros(len(samples), dtype=torch.bool, device=samples.device)
    reference_inside = torch.zeros(len(reference), dtype=torch.bool, device=reference.device)
    for i in _blocks(len(samples), block):
        for j in _blocks(len(reference), block):
            distance = squared_distances(samples[i], reference[j])
            sample_inside[i] |= (distance <= reference_radii[j]).any(1)
            reference_inside[j] |= (distance <= sample_radii[i, None]).any(0)
    return float(sample_inside.double().mean()), float(reference_inside.double().mean())


def radii(points: Tensor, k: int, block: int = 2048) -> Tensor:
    """[n]: each point's (k+1)-th smallest squared distance within the set, itself included, in float64.

    The matrix of distances is symmetric, so each pair of blocks is computed once and serves both.
    """
    n = len(points)
    smallest = torch.full((n, k + 1), torch.inf, dtype=torch.float64, device=points.device)
    for i in _blocks(n, block):
        for j in _blocks(n, block):
            if j.start < i.start:
                continue
            distance = squared_distances(points[i], points[j])
            if i == j:
                distance.fill_diagonal_(0)
            smallest[i] = _merge(smallest[i], distance)
            if i != j:
                smallest[j] = _merge(smallest[j], distance.T)
    return smallest[:, -1]


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """[n, m] of |a_i - b_j|^2 in float64 by one matrix product.

    What is below the product's own rounding error is set to zero, so a copy of a point is at distance zero.
    """
    a, b = a.double(), b.double()
    norms = a.square().sum(1)[:, None] + b.square().sum(1)
    distance = norms - 2 * (a @ b.T)
    noise = (a.shape[1] + 4) * torch.finfo(distance.dtype).eps * norms
    return torch.where(distance > noise, distance, 0)


def _merge(smallest: Tensor, distance: Tensor) -> Tensor:
    count = smallest.shape[1]
    return torch.cat([smallest, distance], 1).topk(count, dim=1, largest=False, sorted=True).values


def _blocks(n: int, block: int) -> Iterator[slice]:
    return (slice(start, min(start + block, n)) for start in range(0, n, block))
