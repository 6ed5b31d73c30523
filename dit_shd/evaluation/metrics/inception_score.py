"""Inception Score (Salimans et al., arXiv 1606.03498, eq. in section 4): exp E_x KL(p(y|x) || p(y)).

As in ADM's evaluator: p is the softmax of the logits without bias, p(y) is taken over chunks of 5,000 samples in file
order, the figure is the mean over chunks. A smaller last chunk counts by its images (ADM's evaluator counts it as a
whole chunk: 5,001 images would score half of what 5,000 do); for 10,000 or 50,000 images that is the same.

A file sorted by class gives nonsense, so the score is also taken over shuffled copies: KL(p(y|x) || p(y)) is on average
H(p(y)) - H(p(y|x)), whose second part no order changes, so one pass gives all of them.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dit_shd.core.errors import UserError
from dit_shd.evaluation.feature_set import FeatureSet
from dit_shd.evaluation.metrics import Metric

SHUFFLES, SEED = 30, 0
DEVIATIONS, SHARE = 10.0, 0.005
"""Distance from random order's mean, in its deviations and as a share, beyond which the file's order is another one."""


class InceptionScore(Metric):
    """IS, or IS(title) with any other network, of the samples alone; of several chunks their deviation, too.

    Args:
        chunk: Number of samples that share one p(y).
    """

    needs_logits = True
    lowest = 1.0

    def __init__(self, chunk: int = 5000) -> None:
        if chunk < 1:
            raise UserError(f"metrics.inception_score.chunk: wanted at least 1 image, found {chunk}")
        self.chunk = chunk
        self._latest: tuple[FeatureSet, Order] | None = None

    def compute(self, samples: FeatureSet, reference: FeatureSet) -> dict[str, float]:
        """The score and its deviation over chunks, which a single one has not."""
        logits, name = _logits(samples), samples.named("IS")
        mean, std = inception_score(logits, self.chunk)
        return {name: mean} | ({f"{name} std": std} if len(logits) > self.chunk else {})

    def notes(self, samples: FeatureSet, reference: FeatureSet) -> list[str]:
        """An incomplete last chunk, and an order of the file that is more even than random."""
        logits, name, notes = _logits(samples), samples.named("IS"), []
        rest = len(logits) % self.chunk
        if rest and len(logits) > self.chunk:
            adm = float(chunk_scores(logits, self.chunk).mean())
            notes.append(
                f"{name}: the last chunk holds {rest:,} of {self.chunk:,} images and counts by them; ADM's evaluator "
                f"counts it as a whole chunk, which would give {adm:.3f}"
            )
        order = self._order(samples)
        if order.evener:
            notes.append(
                f"{name}: the samples lie more evenly by class than in random order, which would give "
                f"{order.shuffled:.3f}"
            )
        return notes

    def reasons_against(self, samples: FeatureSet) -> list[str]:
        """That the samples are sorted, if they are."""
        order, name = self._order(samples), samples.named("IS")
        if not order.is_sorted:
            return []
        return [f"{name} is {order.score:.3f} because the samples are sorted, and {order.shuffled:.3f} in random order"]

    def _order(self, samples: FeatureSet) -> "Order":
        if self._latest is None or self._latest[0] is not samples:
            self._latest = samples, order_of(_logits(samples), self.chunk)
        return self._latest[1]


def _logits(samples: FeatureSet) -> Tensor:
    if samples.logits is None:
        raise UserError(f"inception_score: feature network {samples.title} has no logits; choose one that classifies")
    return samples.logits


def inception_score(logits: Tensor, chunk: int = 5000) -> tuple[float, float]:
    """Mean and population standard deviation over chunks of logits [n,classes], weighted by images."""
    scores = chunk_scores(logits, chunk)
    share = _sizes(len(logits), chunk).to(scores) / len(logits)
    mean = (share * scores).sum()
    return float(mean), float((share * (scores - mean).square()).sum().sqrt())


def chunk_scores(logits: Tensor, chunk: int) -> Tensor:
    """The score of each chunk [chunks], in float64."""
    scores = []
    for rows in logits.split(chunk):
        log_p = rows.double().log_softmax(1)
        log_marginal = log_p.logsumexp(0) - math.log(len(rows))
        kl = (log_p.exp() * (log_p - log_marginal)).sum(1)
        scores.append(kl.mean().exp())
    return torch.stack(scores)


@dataclass(frozen=True)
class Order:
    """The score in file order, and mean and deviation of the scores in random orders."""

    score: float
    shuffled: float
    deviation: float

    @property
    def is_sorted(self) -> bool:
        """Whether the chunks lack classes that chunks of random samples would have."""
        return self._apart(self.shuffled - self.score)

    @property
    def evener(self) -> bool:
        """Whether the chunks hold the classes more evenly than those of random samples."""
        return self._apart(self.score - self.shuffled)

    def _apart(self, gap: float) -> bool:
        return gap > max(DEVIATIONS * self.deviation, SHARE * self.shuffled)


def order_of(logits: Tensor, chunk: int) -> Order:
    """The score of logits [n,classes] in file order and in SHUFFLES random orders; a single chunk has no order."""
    n = len(logits)
    if n <= chunk:
        score = inception_score(logits, chunk)[0]
        return Order(score, score, 0.0)
    sizes = _sizes(n, chunk).to(logits.device)
    p, within = torch.empty_like(logits, dtype=torch.float64), torch.empty(n, dtype=torch.float64, device=logits.device)
    for rows in torch.arange(n).split(4096):
        log_p = logits[rows].double().log_softmax(1)
        p[rows] = log_p.exp()
        within[rows] = (p[rows] * log_p).sum(1)
    generator = torch.Generator().manual_seed(SEED)
    orders = [torch.arange(n), *(torch.randperm(n, generator=generator) for _ in range(SHUFFLES))]
    scores = torch.stack([_score(p, within, order.to(logits.device) // chunk, sizes) for order in orders])
    return Order(float(scores[0]), float(scores[1:].mean()), float(scores[1:].std()))


def _score(p: Tensor, within: Tensor, chunk_of: Tensor, sizes: Tensor) -> Tensor:
    """The score of p [n,classes] with -H(p) `within` [n] and chunk_of [n], the number of each row's chunk."""
    marginals = p.new_zeros(len(sizes), p.shape[1]).index_add_(0, chunk_of, p) / sizes[:, None]
    kl = within.new_zeros(len(sizes)).index_add_(0, chunk_of, within) / sizes
    kl -= torch.special.xlogy(marginals, marginals).sum(1)
    return (kl.exp() * sizes).sum() / len(p)


def _sizes(n: int, chunk: int) -> Tensor:
    """Number of images in each chunk."""
    return torch.tensor([min(chunk, n - start) for start in range(0, n, chunk)])
