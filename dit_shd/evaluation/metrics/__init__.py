"""Metrics: figures that compare a set of samples with a reference set, in the features of one network.

One file here is one metric, called by its file name. Its inputs are two FeatureSets, never images.

Shapes: n images, d pooled features. Statistics are float64; products of large matrices run in blocks.
"""

import math
from abc import ABC, abstractmethod

from torch import Tensor

from dit_shd.core.plugins import PluginFolder
from dit_shd.evaluation.feature_set import FeatureSet

NORMAL = 1.959964
"""Standard deviations on both sides that hold 95% of a normal distribution."""


class Metric(ABC):
    """A figure, or several that are computed together.

    The evaluator checks the requirements below before it runs the network.
    """

    minimum: int = 2
    """Images required in each set."""
    needs_logits: bool = False
    """Whether the network must classify."""
    needs_spatial: bool = False
    """Whether the network must have the features of sFID."""
    needs_text_network: bool = False
    """Whether the network must read text, as CLIP does."""
    needs_text: bool = False
    """Whether the network must read text, and the samples have prompts."""
    needs_reference_images: bool = False
    """Whether the reference must have images, not statistics alone."""
    not_resampled: tuple[str, ...] = ()
    """Figures for which a bootstrap interval would be wrong."""
    lowest: float = -math.inf
    """What no figure of it can be below."""
    shares: tuple[str, ...] = ()
    """Figures that cannot be above 1."""

    @abstractmethod
    def compute(self, samples: FeatureSet, reference: FeatureSet) -> dict[str, float]:
        """Figures by name; distances and scores carry the network's title unless it is the 2015 Inception."""

    def details(self, samples: FeatureSet, reference: FeatureSet) -> tuple[dict[str, float], dict[str, Tensor]]:
        """The figures, and results for single images by name (empty for most metrics)."""
        return self.compute(samples, reference), {}

    def notes(self, samples: FeatureSet, reference: FeatureSet) -> list[str]:
        """What a reader must know before comparing these figures with others."""
        return []

    def reasons_against(self, samples: FeatureSet) -> list[str]:
        """Why these figures may not be set beside published ones, as far as the features show it."""
        return []


FIGURES = {
    "fid": "frechet", "fd": "frechet", "is": "inception_score", "sfid": "spatial_frechet", "prdc": "precision_recall",
    "precision": "precision_recall", "recall": "precision_recall", "density": "precision_recall",
    "coverage": "precision_recall", "clip": "clip_score",
}  # fmt: skip
"""Figure -> the metric that gives it."""
METRICS = PluginFolder(__name__, Metric, "metrics", FIGURES)
