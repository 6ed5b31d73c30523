"""Inception Score (Salimans et al., arXiv 1606.03498, eq. in section 4): exp E_x KL(p(y|x) || p(y)).

As in ADM's evaluator: p is the softmax of the logits without bias, p(y) is taken over chunks of 5,000
samples in file order, the figure is the mean over chunks (the last chunk may be smaller). A file sorted by
class gives nonsense.
"""

import math

import torch
from torch import Tensor

from dit_shd.core.errors import UserError
from dit_shd.evaluation.feature_set import FeatureSet
from dit_shd.evaluation.metrics import Metric


class InceptionScore(Metric):
    """IS, or IS(title) with any other network, of the samples alone; and its deviation over chunks.

    chunk: samples that share one p(y).
    """

    needs_logits = True

    def __init__(self, chunk: int = 5000) -> None:
        if chunk < 1:
            raise UserError(f"metrics.inception_score.chunk: wanted at least 1 image, found {chunk}")
        self.chunk = chunk

    def compute(self, samples: FeatureSet, reference: FeatureSet) -> dict[str, float]:
        if samples.logits is None:
            raise UserError(
                f"inception_score: feature network {samples.title} has no logits; choose one that classifies"
            )
        mean, std = inception_score(samples.logits, self.chunk)
        name = samples.named("IS")
        return {name: mean, f"{name} std": std}


def inception_score(logits: Tensor, chunk: int = 5000) -> tuple[float, float]:
    """Mean and population standard deviation over chunks of the rows of logits [n, classes], in float64."""
    scores = []
    for rows in logits.split(chunk):
        log_p = rows.double().log_softmax(1)
        log_marginal = log_p.logsumexp(0) - math.log(len(rows))
        kl = (log_p.exp() * (log_p - log_marginal)).sum(1)
        scores.append(kl.mean().exp())
    stacked = torch.stack(scores)
    return float(stacked.mean()), float(stacked.std(correction=0))
