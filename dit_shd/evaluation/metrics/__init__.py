"""Metrics: figures that compare a set of samples with a reference set, in the features of one network.

One file here is one metric, called by its file name. `FeatureSet` is all a metric sees of a set of images.

Shapes: n images, d pooled features. Statistics are float64; products of large matrices run in blocks.
"""

import abc

from torch import Tensor

from dit_shd.core.plugins import PluginFolder
from dit_shd.evaluation.feature_set import FeatureSet


class Metric(abc.ABC):
    """A figure, or a few that are computed together.

    minimum: images needed in each set; needs_logits: the network must classify; needs_spatial: it must have the
    features of sFID; needs_reference_images: a reference that is only statistics will not do. The evaluator checks
    these before it runs the network. not_resampled: figures for which the bootstrap says nothing true.
    """

    minimum: int = 2
    needs_logits: bool = False
    needs_spatial: bool = False
    needs_reference_images: bool = False
    not_resampled: tuple[str, ...] = ()

    @abc.abstractmethod
    def compute(self, samples: FeatureSet, reference: FeatureSet) -> dict[str, float]:
        """Figures by name. With another network than the 2015 Inception, distances and scores carry its title."""

    def details(self, samples: FeatureSet, reference: FeatureSet) -> tuple[dict[str, float], dict[str, Tensor]]:
        """The figures, and what the metric knows of single images, by name; nothing unless a metric says more."""
        return self.compute(samples, reference), {}

    def notes(self, samples: FeatureSet, reference: FeatureSet) -> list[str]:
        """What a reader must know before comparing these figures with others."""
        return []

    def reasons_against(self, samples: FeatureSet) -> list[str]:
        """Why these figures may not be set beside published ones, as far as the features tell."""
        return []


METRICS = PluginFolder(__name__, Metric, "metrics")
