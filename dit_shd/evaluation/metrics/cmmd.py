"""CMMD (Jayasumana et al., arXiv 2401.09603): maximum mean discrepancy of pictures in a CLIP network of the user's.

1000 times the squared discrepancy of features of length 1 under the kernel exp(-|x - y|^2 / (2 * 10^2)), by the biased
estimate of the public code (Gretton et al. 2012, eq. 5), which is never below zero. It needs no normal distribution and
fewer pictures than FID. Published figures are of openai/clip-vit-large-patch14-336; only those of one network may be
compared. Ports of the public code resize pictures without antialias, so figures of larger pictures are not theirs.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dit_shd.core.errors import UserError
from dit_shd.evaluation.feature_set import FeatureSet
from dit_shd.evaluation.metrics import Metric

SCALE = 1000
FEW = 1000
"""Pictures below which the bias is said."""
ROWS = 2048
"""Of each set, whose kernel is held at once."""


class CMMD(Metric):
    """CMMD(title), lower is better; in features of pictures and text alone, by which it is defined.

    Args:
        sigma: Width of the kernel, the paper's.
    """

    needs_text_network = True
    needs_reference_images = True
    lowest = 0.0

    def __init__(self, sigma: float = 10.0) -> None:
        if not sigma > 0:
            raise UserError(f"metrics.cmmd.sigma: wanted more than 0, found {sigma}")
        self.sigma = sigma
        self._known: tuple[FeatureSet, float] | None = None
        """The reference, which resamplings share, and the mean of its kernel."""

    def compute(self, samples: FeatureSet, reference: FeatureSet) -> dict[str, float]:
        """Of all images of both sets."""
        x, y = _directions(samples), _directions(reference)
        if x.shape[1] != y.shape[1]:
            raise UserError(f"cmmd: wanted as many features on both sides, found {x.shape[1]} and {y.shape[1]}")
        if self._known is None or self._known[0] is not reference:
            self._known = reference, mean_kernel(y, y, self.sigma)
        squared = mean_kernel(x, x, self.sigma) + self._known[1] - 2 * mean_kernel(x, y, self.sigma)
        return {samples.named("CMMD"): SCALE * max(squared, 0.0)}

    def notes(self, samples: FeatureSet, reference: FeatureSet) -> list[str]:
        """By how much the figure of few images is too high: the biased estimate less the unbiased one."""
        sets = [_directions(one) for one in (samples, reference)]
        if min(map(len, sets)) >= FEW:
            return []
        bias = SCALE * sum(-mean_kernel(x, x, self.sigma) / (len(x) - 1) for x in sets)
        counts = " and ".join(f"{len(x):,}" for x in sets)
        return [f"{samples.named('CMMD')}: {bias:.3g} of it is that there are {counts} images: compare as many"]


def _directions(features: FeatureSet) -> Tensor:
    return F.normalize(features.require_pooled("cmmd").double(), dim=1)


def mean_kernel(x: Tensor, y: Tensor, sigma: float) -> float:
    """The mean of a Gaussian kernel over all pairs of x [n,d] and y [m,d], less 1, in blocks, in float64.

    Of exp(s) - 1 with s = -|x - y|^2 / (2 sigma^2): the kernel of a wide Gaussian is nearly 1, which cancels in the
    discrepancy.
    """
    blocks = (_block(a, b, sigma) for a in x.split(ROWS) for b in y.split(ROWS))
    return float(torch.stack([*blocks]).sum() / (len(x) * len(y)))


def _block(x: Tensor, y: Tensor, sigma: float) -> Tensor:
    squares = x.square().sum(1)[:, None] + y.square().sum(1) - 2 * x @ y.T
    return torch.expm1(squares.clamp(min=0) / (-2 * sigma**2)).sum()
