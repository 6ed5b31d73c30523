"""Confidence intervals by the bootstrap over images (Efron 1979): how far a figure moves with other samples.

The samples are drawn again from themselves, as many with replacement (of images that share prompts, which are alike,
prompts with all their images until there are as many), and every figure is computed anew against the
same reference. The interval is the figure plus and minus 1.96 times the deviation over the resamplings. Percentiles
of the resamplings themselves would not do: a resampled set has fewer different images, which biases a Frechet
distance as a smaller set would, so often the figure would not lie in its own interval. It ends where no figure can be
(a precision above 1).

What it leaves out: the reference is taken as it is, and another training seed moves FID more than another draw of
samples does. Recall and coverage have no interval: an image drawn twice is its own nearest neighbour, so the balls of a
resampled set shrink, and the deviation of recall came out 1.7 to 2.8 times too large in simulations. A figure that no
resampling moves (a precision of 0 or 1) has none either.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from dit_shd.core.progress import progress_bar
from dit_shd.evaluation.feature_set import FeatureSet
from dit_shd.evaluation.metrics import NORMAL, Metric

SEED = 0


def intervals(
    metrics: Sequence[Metric],
    samples: FeatureSet,
    reference: FeatureSet,
    figures: dict[str, float],
    resamples: int,
    seed: int = SEED,
) -> dict[str, dict[str, float]]:
    """For each figure that allows it: `low` and `high` (95%), and `std`, the deviation over the resamplings.

    None of images of one prompt: how a figure moves with the prompt is not known.

    Args:
        metrics: The metrics behind the figures.
        samples: The samples' features, with spatial rows if spatial statistics are there.
        reference: What the samples are compared with.
        figures: The figures of the samples themselves, around which the intervals lie.
        resamples: Number of resamplings.
        seed: Seed of the draws.
    """
    if samples.prompts is not None and not samples.prompts.any():
        return {}
    unfit = {name for metric in metrics for name in metric.not_resampled}
    names = [name for name in figures if not name.endswith(" std") and name not in unfit]
    shares = {name for metric in metrics for name in metric.shares}
    lowest: dict[str, float] = {}
    resampled_figures: dict[str, list[float]] = {name: [] for name in names}
    generator = torch.Generator().manual_seed(seed)
    with progress_bar(resamples, "resampling", "intervals") as bar:
        for _ in range(resamples):
            drawn = resampled(samples, generator)
            for metric in metrics:
                for name, value in metric.compute(drawn, reference).items():
                    if name in resampled_figures:
                        resampled_figures[name].append(value)
                        lowest[name] = metric.lowest
            bar.update()
    ends = {}
    for name in names:
        std = float(torch.tensor(resampled_figures[name], dtype=torch.float64).std())
        if std == 0:
            continue
        low, high = figures[name] - NORMAL * std, figures[name] + NORMAL * std
        high = min(high, 1.0) if name in shares else high
        ends[name] = {"low": max(low, lowest[name]), "high": high, "std": std}
    return ends


def resampled(samples: FeatureSet, generator: torch.Generator) -> FeatureSet:
    """Draw as many images as there are, or prompts with their images until there are as many, with replacement."""
    assert samples.pooled is not None, "samples have features"
    prompts = torch.arange(len(samples.pooled)) if samples.prompts is None else samples.prompts.cpu()
    n, counts = len(prompts), prompts.bincount()
    numbers = torch.randint(0, len(counts), (n,), generator=generator)
    drawn_counts = counts[numbers]
    drawn_counts = drawn_counts[: int((drawn_counts.cumsum(0) < n).sum()) + 1]  # no more than are needed
    firsts = (counts.cumsum(0) - counts)[numbers[: len(drawn_counts)]] - (drawn_counts.cumsum(0) - drawn_counts)
    places = firsts.repeat_interleave(drawn_counts) + torch.arange(int(drawn_counts.sum()))
    index = prompts.argsort(stable=True)[places[:n]].to(samples.pooled.device)
    logits, spatial = (None if rows is None else rows[index] for rows in (samples.logits, samples.spatial_rows))
    drawn = FeatureSet.of(samples.pooled[index], logits, samples.title, samples.is_fid, spatial)
    texts = None if samples.texts is None else samples.texts[index]
    return replace(drawn, spatial_rows=None, texts=texts)
