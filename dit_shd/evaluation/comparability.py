"""Whether figures may be set beside published ones, which come from OpenAI's ADM evaluator, and beside each other.

The Inception Score takes p(y) over chunks in file order, so the order of the samples counts. Here their labels are
tested for an order by class; dit_shd.evaluation.metrics.inception_score tests the network's logits.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import gammaincc

from dit_shd.core.errors import UserError
from dit_shd.core.plugins import Plugin
from dit_shd.data.image_sets import ImageSet
from dit_shd.evaluation.features import FeatureNetwork
from dit_shd.evaluation.metrics import METRICS
from dit_shd.evaluation.metrics.frechet import PUBLISHED
from dit_shd.evaluation.reference import Reference

REFERENCE_IMAGES = 10_000
"""Images in ADM's reference file, for precision and recall."""
LOSSY = "JPEG files or lossy WebP"
DECISIVE = ("steps", "guidance", "guidance_schedule", "labels", "rounding")
"""Keys of the sampler that have to be known, and equal, of all samples that are compared."""
OTHERS = (
    "solver",
    "guidance_power",
    "guidance_tolerance",
    "guided_channels",
    "shift",
    "precision",
    "vae_sha256",
    "call",
    "prompts",
    "scheduler",
    "diffusion_steps",
)
"""Keys of the sampler that have to be equal where all samples record them."""
SHORT = 60
"""Letters of a setting in a note."""
CHANCE = 1e-9
"""Probability with which random order is called sorted."""


def reasons_against(
    samples: ImageSet, reference: Reference, network: FeatureNetwork, metrics: Sequence[Plugin]
) -> list[str]:
    """Why the figures are not ADM-comparable, one text for each reason; empty if they are."""
    reasons = []
    if not network.is_fid:
        reasons.append(f"features {network.title} are not the 2015 Inception")
    if samples.shape[0] != PUBLISHED:
        reasons.append(f"{samples.shape[0]:,} samples, not {PUBLISHED:,}")
    reasons += _reasons_of_reference(reference)
    if samples.lossy:
        reasons.append(f"the samples are {LOSSY}")
    if samples.labels is not None and lie_by_class(samples.labels, _chunk(metrics)):
        reasons.append("the samples are sorted by class, not in random order, so the Inception Score means nothing")
    reasons += [f"options of {plugin.name} are not the usual ones" for plugin in metrics if _changed(plugin)]
    return reasons


def sampled_differently(names: Sequence[str], sidecars: Sequence[Mapping[str, Any]]) -> list[str]:
    """Settings of the sampler that differ, one note for each.

    Args:
        names: The names of the models or files.
        sidecars: Of each, what the sampler recorded beside its samples; empty where it recorded nothing.
    """
    notes = []
    for key in (*DECISIVE, *(key for key in OTHERS if all(key in sidecar for sidecar in sidecars))):
        values = [_shortly(sidecar.get(key, "not recorded")) for sidecar in sidecars]
        if len({json.dumps(sidecar.get(key)) for sidecar in sidecars}) > 1:
            notes.append(f"sampled with different {key}: " + ", ".join(f"{n} {v}" for n, v in zip(names, values)))
    return notes


def _shortly(value: object) -> str:
    """A setting in a note; of prompts how many, and the first."""
    if isinstance(value, list) and value and all(isinstance(each, str) for each in value):
        return f"{len(value)} (the first: {value[0][:SHORT]})"
    return str(value)[:SHORT]


def lie_by_class(labels: np.ndarray, chunk: int) -> bool:
    """Whether labels [n], more than a chunk of them, are ordered by class beyond what random order allows.

    Ordered by class: the parts of a file hold other shares of the classes than the whole file, or neighbours are
    alike, as with rising or falling labels, blocks, and the sorted files of several processes in a row. Classes in
    turn (i modulo the classes) lie more evenly than random order; that is not called sorted.
    """
    _, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if len(codes) <= max(chunk, 3) or not 1 < len(counts) < len(codes):
        return False
    return _uneven(codes, counts, math.ceil(len(codes) / chunk)) or _in_runs(codes, counts)


def _uneven(codes: np.ndarray, counts: np.ndarray, parts: int) -> bool:
    """Pearson's chi-square of the classes in equal parts of the file, against random order of these very labels.

    Under random order its mean is n (r-1) (c-1) / (n-1), its variance that of Dawson (Biometrika 41, 1954, p. 280), and
    a gamma distribution of both has its tail, few images in a class and part or many.
    """
    n, part_of = len(codes), np.arange(len(codes)) * parts // len(codes)
    sizes = np.bincount(part_of)
    cells, observed = np.unique(part_of * len(counts) + codes, return_counts=True)
    part, code = np.divmod(cells, len(counts))
    chi_square = n * (float((observed.astype(float) ** 2 / (sizes[part] * counts[code])).sum()) - 1)
    mean = n * (parts - 1) * (len(counts) - 1) / (n - 1)
    (v_1, w_1), (v_2, w_2) = (_margin(n, margin) for margin in (sizes, counts))
    variance = 2 * n / (n - 3) * (v_1 - w_1) * (v_2 - w_2) + n**2 / (n - 1) * w_1 * w_2
    return variance > 1e-9 and bool(gammaincc(mean**2 / variance, chi_square * mean / variance) < CHANCE)


def _margin(n: int, sizes: np.ndarray) -> tuple[float, float]:
    """Dawson's v and w of a margin of the table."""
    m = len(sizes)
    return (m - 1) * (n - m) / (n - 1), (n * float((1 / sizes).sum()) - m**2) / (n - 2)


def _in_runs(codes: np.ndarray, counts: np.ndarray) -> bool:
    """Whether more neighbours are of one class than random order gives.

    The runs test for several classes (Mood, Ann. Math. Statist. 11, 1940), with Bernstein's bound in place of a normal
    tail, because such neighbours may be rare.
    """
    n, square, cube = len(codes), float((counts.astype(float) ** 2).sum()), float((counts.astype(float) ** 3).sum())
    alike = int((codes[1:] == codes[:-1]).sum())
    variance = (square * (square + n * (n + 1)) - 2 * n * cube - n**3) / (n**2 * (n - 1))
    depth = -math.log(CHANCE)
    return alike > square / n - 1 + depth / 3 + math.sqrt(depth**2 / 9 + 2 * depth * variance)


def _chunk(metrics: Sequence[Plugin]) -> int:
    """Images that share one p(y) in the Inception Score that is reported, or would be."""
    plugins = [plugin for plugin in metrics if plugin.name == "inception_score"] or [Plugin("inception_score")]
    return int(METRICS.filled(plugins[0]).options["chunk"])


def _reasons_of_reference(reference: Reference) -> list[str]:
    statistics, count = reference.statistics, reference.image_count
    reasons = [f"the reference images are {LOSSY}"] if reference.lossy else []
    if statistics is None:
        return ["the reference is not a file of statistics (mu, sigma, mu_s, sigma_s) of a training set", *reasons]
    if not statistics.complete:
        reasons.append("the reference lacks mu_s and sigma_s")
    if 0 < statistics.pooled.n < PUBLISHED:
        reasons.append(f"statistics of only {statistics.pooled.n:,} reference images")
    if count != REFERENCE_IMAGES:
        reasons.append(f"{count:,} reference images for precision and recall, not {REFERENCE_IMAGES:,}")
    return reasons


def _changed(plugin: Plugin) -> bool:
    return METRICS.filled(plugin) != METRICS.filled(Plugin(plugin.name))


ONE_MODEL = "the spread is over sampling seeds of one model; another training seed can move FID more"


def of_one_model(settings: Sequence[Mapping[str, Any]]) -> bool:
    """Whether several sets of samples are known, by their settings, to be of the same weights."""
    hashes = {each.get("model_sha256") for each in settings}
    return len(settings) > 1 and len(hashes) == 1 and None not in hashes


def check_alike(sets: Sequence[ImageSet]) -> None:
    """Refuse files of samples of unlike shapes, and those of which some have prompts and others have none.

    Raises:
        UserError: Naming one of the others.
    """
    for samples in sets:
        if samples.shape != sets[0].shape:
            raise UserError(
                f"{samples.name}: wanted as many images of one size in every file of samples, found "
                f"{list(samples.shape)}, and {list(sets[0].shape)} in {sets[0].name}"
            )
    without = [each.name for each in sets if each.prompts is None]
    if 0 < len(without) < len(sets):
        known = next(each.name for each in sets if each.prompts is not None)
        raise UserError(
            f"{without[0]}: wanted the prompts of its pictures, as {known} has them, found none; evaluate those with "
            "prompts apart from those without"
        )
