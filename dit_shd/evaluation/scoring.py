"""Which metrics apply to samples, reference and network, and their figures."""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from dit_shd.core.config import cast
from dit_shd.core.errors import UserError
from dit_shd.core.plugins import Plugin
from dit_shd.data.image_sets import ArrayImages, HasImages, ImageSet, settings_file
from dit_shd.evaluation.extraction import extract_features
from dit_shd.evaluation.feature_set import FeatureSet
from dit_shd.evaluation.features import FeatureNetwork
from dit_shd.evaluation.metrics import METRICS, Metric
from dit_shd.evaluation.reference import Reference

_log = logging.getLogger("dit_shd")

Chosen = list[tuple[Plugin, Metric]]


def score(
    images: np.ndarray | Tensor | HasImages,
    reference_images: np.ndarray | Tensor | HasImages | FeatureSet | Reference,
    features: FeatureNetwork,
    metrics: Sequence[str | Mapping[str, Any] | Plugin] | None = None,
    batch_size: int = 64,
) -> dict[str, float]:
    """Compute figures of images against a reference; nothing is written.

    What a reader should know is logged as a warning: samples sorted by class, whose Inception Score means nothing, too
    few images for the network's features, metrics that were left out and why, remarks on the reference.

    Args:
        images: Samples, uint8 [n,y,x,c], or what `dit_shd.sample` returned.
        reference_images: Images of the same kind, a FeatureSet that `extract_features` made, to be used many times, or
            what `open_reference` opened.
        features: The feature network.
        metrics: Files of dit_shd/evaluation/metrics, by name or as {name: ..., key: value}; all that apply if left
            out.
        batch_size: Images per forward pass of the feature network.

    Returns:
        Figures by name, as FD(digits).

    Raises:
        UserError: Images of another type or shape than the network reads, or too few for a metric.
    """
    if batch_size < 1:
        raise UserError(f"batch_size: wanted at least 1 image, found {batch_size}")
    samples = ArrayImages(images, "images")
    features.check(samples.shape[1:], "images")
    if isinstance(reference_images, Reference):
        reference = reference_images
    elif isinstance(reference_images, FeatureSet):
        reference = Reference("reference_images", prepared=reference_images)
    else:
        reference = Reference("reference_images", images=ArrayImages(reference_images, "reference_images"))
    reference.check(samples, features)
    plugins = cast(list[Plugin] | None, list(metrics) if isinstance(metrics, tuple) else metrics, "metrics")
    chosen, left_out = select_metrics(plugins, samples, reference, features)
    for remark in (*left_out, *(f"reference: {note}" for note in reference.notes)):
        _log.warning("%s", remark)
    sample_set = extract_features(features, samples, batch_size)
    reference_set = reference.features(features, batch_size)
    for _, metric in chosen:
        for remark in (*metric.reasons_against(sample_set), *metric.notes(sample_set, reference_set)):
            _log.warning("%s", remark)
    return compute_metrics(chosen, sample_set, reference_set)[0]


def compute_metrics(
    metrics: Chosen, samples: FeatureSet, reference: FeatureSet
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """All figures by name, and the metrics' results for single images.

    Raises:
        UserError: Two metrics give figures of one name, or one gives no finite number.
    """
    figures: dict[str, float] = {}
    details: dict[str, Tensor] = {}
    for plugin, metric in metrics:
        metric_figures, metric_details = metric.details(samples, reference)
        twice = [*(metric_figures.keys() & figures.keys()), *(metric_details.keys() & details.keys())]
        if twice:
            raise UserError(
                f"metrics: {plugin.name}: gives {twice[0]}, which another metric gives, too; give it another name"
            )
        odd = [f"{name}={value}" for name, value in metric_figures.items() if not math.isfinite(value)]
        if odd:
            raise UserError(f"metrics: {plugin.name}: wanted finite figures, found {odd[0]}; leave it out, or mend it")
        figures.update(metric_figures)
        details.update(metric_details)
    return figures, details


def select_metrics(
    requested: list[Plugin] | None, samples: ImageSet, reference: Reference, network: FeatureNetwork
) -> tuple[Chosen, list[str]]:
    """The metrics that apply, built, and a note for each that was left out.

    Raises:
        UserError: A metric that was requested by name does not apply, or none applies.
    """
    candidates = [Plugin(name) for name in METRICS.names()] if requested is None else requested
    chosen: Chosen = []
    notes = []
    for plugin in candidates:
        metric: Metric = METRICS.build(plugin, f"metrics.{plugin.name}")
        obstacle = _obstacle(metric, samples, reference, network)
        if obstacle is None:
            chosen.append((plugin, metric))
        elif requested is None and (
            metric.needs_spatial > network.has_spatial or _reads_text(metric) > network.reads_text
        ):
            continue  # sFID, CMMD and the CLIP score are of few networks; no note where another is used
        elif requested is None:
            notes.append(f"{plugin.name} left out: {obstacle}")
        else:
            raise UserError(f"metrics.{plugin.name}: {obstacle}")
    if not chosen:
        reasons = "; ".join(notes) or "an empty list"
        raise UserError(f"metrics: wanted at least one that applies, found none ({reasons})")
    return chosen, notes


def _reads_text(metric: Metric) -> bool:
    return metric.needs_text_network or metric.needs_text


def _obstacle(metric: Metric, samples: ImageSet, reference: Reference, network: FeatureNetwork) -> str | None:
    if metric.needs_logits and not network.has_logits:
        return f"wanted a network that classifies, found {network.title}; choose another with features=NAME"
    if metric.needs_spatial and not network.has_spatial:
        return f"wanted a network with spatial features, found {network.title}; choose features=inception"
    if metric.needs_spatial and not reference.has_spatial(network):
        return f"wanted mu_s and sigma_s, found neither in {reference.name}; write it again with dit-shd statistics"
    if _reads_text(metric) and not network.reads_text:
        return f"wanted a network that reads text, found {network.title}; features={{name: clip, weights: FOLDER}}"
    if metric.needs_text and samples.prompts is None:
        file = "the .json beside it" if samples.path is None else settings_file(samples.path).name
        names = samples.file_names
        form = '["a cat", ...]' if names is None else f'{{"{names[0]}": "a cat", ...}}'
        wanted = f"one for each of the {samples.shape[0]:,} images{' in order' if names is None else ' by its name'}"
        return f'{samples.name}: wanted the prompts of its images, {wanted}, in {file}: {{"prompts": {form}}}'
    if metric.needs_reference_images and reference.image_count == 0:
        return f"wanted a reference with images, found only statistics in {reference.name}; add arr_0 to it"
    for name, count in ((samples.name, samples.shape[0]), (reference.name, reference.image_count)):
        if 0 < count < metric.minimum:
            return f"wanted at least {metric.minimum} images, found {count} in {name}; give more images"
    return None
