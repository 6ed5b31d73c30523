"""Kernel Inception Distance (Binkowski et al., arXiv 1801.01401, section 4): unbiased for independent draws.

The squared maximum mean discrepancy of the kernel k(x, y) = (x.y / d + 1)^3, estimated without bias
(Gretton et al. 2012, eq. 3) on random subsets of the two sets; the figure is the mean over subsets. The draws of
the subsets, their number and their size are torch-fidelity's, so the figures are the same.

Images of which each class has the same number are no independent draws: fewer pairs within such a set are of one class
than between two of them, which lowers the figure, far below zero where both are of one distribution.
"""

import numpy as np
import torch
from torch import Tensor

from dit_shd.core.errors import UserError
from dit_shd.evaluation.feature_set import FeatureSet
from dit_shd.evaluation.metrics import Metric


class KID(Metric):
    """KID, or KID(title) with any other network, and its deviation over subsets; may be just below zero.

    Args:
        subsets: Number of subsets.
        subset_size: Images in each subset; fewer where a set has fewer.
        seed: Seed of the draws.
    """

    needs_reference_images = True

    def __init__(self, subsets: int = 100, subset_size: int = 1000, seed: int = 2020) -> None:
        for name, value, least in (("subsets", subsets, 1), ("subset_size", subset_size, 2), ("seed", seed, 0)):
            if value < least:
                raise UserError(f"metrics.kid.{name}: wanted at least {least}, found {value}")
        self.subsets, self.subset_size, self.seed = subsets, subset_size, seed

    def compute(self, samples: FeatureSet, reference: FeatureSet) -> dict[str, float]:
        """Mean and deviation of the squared discrepancy over subsets, if there are different ones."""
        x, y = samples.require_pooled("kid"), reference.require_pooled("kid")
        if x.shape[1] != y.shape[1]:
            raise UserError(f"kid: wanted as many features on both sides, found {x.shape[1]} and {y.shape[1]}")
        size = min(self.subset_size, len(x), len(y))
        draws = np.random.RandomState(self.seed)
        discrepancies = []
        for _ in range(self.subsets):
            one = draws.choice(len(x), size, replace=False)
            two = draws.choice(len(y), size, replace=False)
            discrepancies.append(mmd2(x[torch.from_numpy(one)], y[torch.from_numpy(two)]))
        name = samples.named("KID")
        differ = self.subsets > 1 and size < max(len(x), len(y))
        return {name: float(np.mean(discrepancies))} | ({f"{name} std": float(np.std(discrepancies))} if differ else {})

    def notes(self, samples: FeatureSet, reference: FeatureSet) -> list[str]:
        """Subsets that are smaller than `subset_size`, or that leave little to chance of a balanced set."""
        name, counts = samples.named("KID"), [len(s.require_pooled("kid")) for s in (samples, reference)]
        size = min(self.subset_size, *counts)
        notes = []
        if size < self.subset_size:
            notes.append(f"{name}: subsets of {size} images, all there are, and not of {self.subset_size:,}")
        if any(s.balanced and 2 * size > count for s, count in zip((samples, reference), counts)):
            notes.append(
                f"{name}: too low, perhaps below zero: images of which each class has the same number are no "
                "independent draws"
            )
        return notes


def mmd2(x: Tensor, y: Tensor) -> float:
    """Unbiased squared discrepancy of x [n,d] and y [m,d] under the cubic kernel, in float64.

    With features u around a middle m, x_i . y_j / d + 1 = c + a_i + b_j + e_ij, where c = m.m / d + 1, a = u.m / d and
    e = u.u / d. In the sum over both sets the terms c^3 and 3 c^2 (a_i + b_j) cancel, so they are left out: far from
    zero they would take up all digits of a float64. The middle is a median, which no outlier moves.
    """
    x, y = x.double(), y.double()
    middle = torch.cat([x, y]).median(0).values
    x, y, c = x - middle, y - middle, float(middle @ middle) / x.shape[1] + 1

    def kernel(one: Tensor, two: Tensor) -> Tensor:
        product = one @ two.T / one.shape[1]
        s = product + (one @ middle / one.shape[1])[:, None] + two @ middle / one.shape[1]
        return 3 * c**2 * product + s.square() * (3 * c + s)

    within = _off_diagonal_mean(kernel(x, x)) + _off_diagonal_mean(kernel(y, y))
    return float(within - 2 * kernel(x, y).mean())


def _off_diagonal_mean(kernel: Tensor) -> Tensor:
    """Mean without the diagonal, which is not subtracted afterwards: an outlier's entry would absorb all others."""
    n = len(kernel)
    return kernel.fill_diagonal_(0).sum() / (n * (n - 1))
