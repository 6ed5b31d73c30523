"""Whether figures may be set beside published ones, which come from OpenAI's ADM evaluator; and if not, why."""

from collections.abc import Sequence

import numpy as np

from dit_shd.core.plugins import Plugin
from dit_shd.data.image_sets import ImageSet
from dit_shd.evaluation.features import FeatureNetwork
from dit_shd.evaluation.metrics import METRICS
from dit_shd.evaluation.metrics.frechet import PUBLISHED
from dit_shd.evaluation.reference import Reference

REFERENCE_IMAGES = 10_000
"""In ADM's reference file, for precision and recall."""
CHUNK = 5000
"""Samples that share one marginal in the Inception Score."""


def obstacles(samples: ImageSet, reference: Reference, network: FeatureNetwork, metrics: Sequence[Plugin]) -> list[str]:
    """Why the figures are not ADM-comparable, a reason each; nothing if they are."""
    found = []
    if not network.is_fid:
        found.append(f"features {network.title} are not the 2015 Inception")
    if samples.shape[0] != PUBLISHED:
        found.append(f"{samples.shape[0]:,} samples, not {PUBLISHED:,}")
    found += _of_reference(reference)
    if samples.lossy:
        found.append("the samples are JPEG files")
    if sorted_by_class(samples):
        found.append("the samples are sorted by class, so the Inception Score means nothing")
    found += [f"options of {plugin.name} are not the usual ones" for plugin in metrics if _changed(plugin)]
    return found


def sorted_by_class(samples: ImageSet) -> bool:
    """Whether chunks in file order hold a few classes each."""
    labels = samples.labels
    return labels is not None and len(labels) > CHUNK and bool((np.diff(labels) >= 0).all()) and labels[0] != labels[-1]


def _of_reference(reference: Reference) -> list[str]:
    statistics = reference.statistics
    if statistics is None:
        return ["the reference is not a file of statistics (mu, sigma, mu_s, sigma_s) of a training set"]
    found = []
    if not statistics.complete:
        found.append("the reference lacks mu_s and sigma_s")
    if 0 < statistics.pooled.n < PUBLISHED:
        found.append(f"statistics of only {statistics.pooled.n:,} reference images")
    if reference.image_count != REFERENCE_IMAGES:
        found.append(f"{reference.image_count:,} reference images for precision and recall, not {REFERENCE_IMAGES:,}")
    return found


def _changed(plugin: Plugin) -> bool:
    return METRICS.filled(plugin) != METRICS.filled(Plugin(plugin.name))
