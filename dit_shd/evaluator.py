"""Evaluation: from a file of samples and a reference to figures, a table and results.json.

    samples, reference -> features (one pass) -> FeatureSet -> metrics -> results.json

Everything that can be refused is refused before the network runs.
"""

from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from dit_shd import registry
from dit_shd.config import Plugin, option
from dit_shd.errors import UserError
from dit_shd.features import FeatureNetwork
from dit_shd.image_sets import ArrayImages, ImageSet, open_images
from dit_shd.metrics import FeatureSet, Metric
from dit_shd.reference import Reference, open_reference
from dit_shd.results import describe, guard, notes_on, table, write

Chosen = list[tuple[Plugin, Metric]]


@dataclass(frozen=True)
class EvaluateConfig:
    """What is compared with what, and how."""

    samples: str = option(MISSING, "npz (arr_0: uint8 [n,h,w,c]), folder of png or jpg, or dataset[:split]")
    reference: str = option(MISSING, "the same, or an npz of statistics (mu, sigma), perhaps with arr_0")
    features: Plugin = option(Plugin("inception"), "feature network, a file of dit_shd/features")
    metrics: list[Plugin] | None = option(None, "files of dit_shd/metrics; all that apply if left out")
    batch_size: int = option(64, "images per forward pass of the feature network")
    device: str = option("auto", "where the feature network runs: auto, cpu, cuda, cuda:1")
    out: Path | None = option(None, "the results file; results.json beside the samples if left out")
    force: bool = option(False, "overwrite a results file that holds another result")


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Compare samples with a reference, print the table, write the results file and return what is in it.

    Raises:
        UserError: any input that cannot be compared, or another result at `out` without `force`.
    """
    if config.batch_size < 1:
        raise UserError(f"batch_size: wanted at least 1 image, found {config.batch_size}")
    samples = open_images(config.samples, "samples")
    reference = open_reference(config.reference, "reference")
    network: FeatureNetwork = config.features.build("features", where="features")
    network.check(samples.shape[1:], "samples")
    reference.check(samples, network)
    metrics, notes = _choose(config.metrics, samples, reference, network)
    record = describe(samples, reference, network, config.features.name, [plugin for plugin, _ in metrics])
    out = config.out or (samples.path.parent if samples.path else Path()) / "results.json"
    guard(out, record, config.force, before=True)

    network.to(_device(config.device))
    figures, sample_set, reference_set = _measure(samples, reference, network, metrics, config.batch_size)
    record = {"figures": figures, **record, "notes": notes + notes_on(samples, sample_set, reference_set)}
    print(table(record))
    guard(out, record, config.force, before=False)
    write(out, record)
    print(f"written to {out}")
    return record


def score(
    images: np.ndarray | Tensor,
    reference_images: np.ndarray | Tensor | FeatureSet,
    features: FeatureNetwork,
    metrics: Sequence[str] | None = None,
    batch_size: int = 64,
) -> dict[str, float]:
    """Figures of images, uint8 [n, h, w, c], against a reference of the same kind; nothing is written.

    reference_images: may be a FeatureSet that `extract_features` made, to be used many times.
    metrics: names of files in dit_shd/metrics; all that apply if left out.

    Raises:
        UserError: images of another type or shape than the network reads, or too few for a metric.
    """
    samples = ArrayImages(images, "images")
    features.check(samples.shape[1:], "images")
    if isinstance(reference_images, FeatureSet):
        if reference_images.title != features.title:
            raise UserError(
                f"reference_images: wanted features of {features.title}, found those of "
                f"{reference_images.title}; extract both with one network"
            )
        reference = Reference("reference", statistics=reference_images)
    else:
        reference = Reference("reference_images", images=ArrayImages(reference_images, "reference_images"))
        reference.check(samples, features)
    plugins = None if metrics is None else [Plugin(name) for name in metrics]
    chosen, _ = _choose(plugins, samples, reference, features)
    return _measure(samples, reference, features, chosen, batch_size)[0]


def extract_features(network: FeatureNetwork, images: ImageSet, batch_size: int = 64) -> FeatureSet:
    """Run the network once over the images, in order; a bar shows on a terminal."""
    pooled, logits = [], []
    with tqdm(total=images.shape[0], unit="image", desc=f"features of {images.name}", disable=None) as bar:
        for batch in images.batches(batch_size):
            found = network.extract(batch)
            pooled.append(found.pooled.float())
            if found.logits is not None:
                logits.append(found.logits.float())
            bar.update(len(batch))
    return FeatureSet.of(
        torch.cat(pooled), torch.cat(logits) if logits else None, title=network.title, is_fid=network.is_fid
    )


def _measure(
    samples: ImageSet, reference: Reference, network: FeatureNetwork, metrics: Chosen, batch_size: int
) -> tuple[dict[str, float], FeatureSet, FeatureSet]:
    sample_set = extract_features(network, samples, batch_size)
    reference_set = reference.features(network, batch_size, extract_features)
    figures: dict[str, float] = {}
    for _, metric in metrics:
        figures.update(metric.compute(sample_set, reference_set))
    return figures, sample_set, reference_set


def _choose(
    plugins: list[Plugin] | None, samples: ImageSet, reference: Reference, network: FeatureNetwork
) -> tuple[Chosen, list[str]]:
    """The metrics that apply, built, and a note for each that was left out.

    A metric that was asked for by name and does not apply is a UserError.
    """
    wanted = [Plugin(name) for name in registry.names("metrics")] if plugins is None else plugins
    chosen: Chosen = []
    notes = []
    for plugin in wanted:
        metric: Metric = plugin.build("metrics", where=f"metrics.{plugin.name}")
        obstacle = _obstacle(metric, samples, reference, network)
        if obstacle is None:
            chosen.append((plugin, metric))
        elif plugins is None:
            notes.append(f"{plugin.name} left out: {obstacle}")
        else:
            raise UserError(f"metrics.{plugin.name}: {obstacle}")
    if not chosen:
        found = "; ".join(notes) or "an empty list"
        raise UserError(f"metrics: wanted at least one that applies, found none ({found})")
    return chosen, notes


def _obstacle(metric: Metric, samples: ImageSet, reference: Reference, network: FeatureNetwork) -> str | None:
    if metric.needs_logits and not network.has_logits:
        return f"wanted a network that classifies, found {network.title}; choose another with features=NAME"
    if metric.needs_reference_images and reference.image_count == 0:
        return f"wanted a reference with images, found only statistics in {reference.name}; add arr_0 to it"
    for name, count in ((samples.name, samples.shape[0]), (reference.name, reference.image_count)):
        if 0 < count < metric.minimum:
            return f"wanted at least {metric.minimum} images, found {count} in {name}; give more images"
    return None


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, dtype=torch.float64, device=device)
    except (RuntimeError, TypeError, AssertionError) as error:
        reason = str(error).splitlines()[0][:80]
        raise UserError(
            f"device: wanted auto or a device with float64, found '{name}' ({reason}); try device=cpu"
        ) from error
    return device
