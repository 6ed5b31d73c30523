"""What an analysis of attention found, in sentences."""

from collections.abc import Sequence

import numpy as np

from dit_shd.analysis.survey import LayerSurvey
from dit_shd.reports.figures.alpha import LayerAlpha, short_layer
from dit_shd.squeezing.matching import group_similarity
from dit_shd.squeezing.plans import Plan, merge_names

HELPS = 0.005
"""Gain in cosine from which a matched plan helps."""
NEAR = 0.1
"""Distance of a median alpha from that of a plain average, up to which a merge is called one."""


def layer_alphas(layers: Sequence[LayerSurvey], timesteps: Sequence[int]) -> list[LayerAlpha]:
    """The alphas of each layer that merges heads, sample by sample.

    Args:
        layers: The layers of the model.
        timesteps: The timesteps of the survey.
    """
    alphas = []
    for layer in layers:
        count, samples, merges = layer.alpha.shape
        if merges:
            t = np.repeat(np.array(timesteps), samples)
            alphas.append(LayerAlpha(layer.layer, merge_names(layer.plan), layer.alpha.reshape(-1, merges), t))
        assert count == len(timesteps)
    return alphas


def either(values: Sequence[int]) -> str:
    """Numbers as text, each once: 4 or 8."""
    return " or ".join(f"{value:,}" for value in sorted(set(values)))


def plan_finding(layers: Sequence[LayerSurvey]) -> str:
    """Where the matched plan puts more similar heads together than the contiguous one does."""
    gains = {}
    for layer in layers:
        inside = [mean_inside(layer.cosines, plan) for plan in (layer.plan, layer.matched)]
        if inside[0] is not None and inside[1] is not None:
            gains[layer.layer] = inside[1] - inside[0]
    if not gains:
        return "No heads are merged."
    helped = [name for name, gain in gains.items() if gain > HELPS]
    if not helped:
        return (
            f"A matched plan does not help in any of {len(gains)} layers: neighbouring heads are as similar as others."
        )
    most = max(helped, key=lambda name: gains[name])
    return (
        f"A matched plan helps in {len(helped)} of {len(gains)} layers: its groups are more similar inside, "
        f"by a cosine of up to {gains[most]:.2f} ({short_layer(most)})."
    )


def mean_inside(cosines: np.ndarray, plan: Plan) -> float | None:
    """The mean cosine of two heads of a group; None where no group has two."""
    pairs = sum(len(group) * (len(group) - 1) // 2 for group in plan)
    return sum(group_similarity(cosines, group) for group in plan) / pairs if pairs else None


def alpha_findings(alphas: Sequence[LayerAlpha]) -> list[str]:
    """Whether a constant would do, and where alpha depends on the timestep."""
    if not alphas:
        return []
    distances = np.concatenate([abs(np.median(layer.alpha, 0) - layer.even) for layer in alphas])
    sentences = [
        f"{(distances > NEAR).sum()} of {len(distances)} merges are not near a plain average: their median alpha is "
        f"further than {NEAR:g} from that by which all heads weigh alike."
    ]
    change, words = max(map(largest_change, alphas))
    return [*sentences, words] if change > 0.005 else sentences


def largest_change(layer: LayerAlpha) -> tuple[float, str]:
    """How much the mean alpha of a layer's merge changes with the timestep at most, as a number and in words."""
    known = np.unique(layer.t)
    means = np.stack([layer.alpha[layer.t == t].mean(0) for t in known])  # [T,merges]
    merge = int(np.ptp(means, 0).argmax())
    low, high = int(means[:, merge].argmin()), int(means[:, merge].argmax())
    ends = [f"{means[i, merge]:.2f} at t = {known[i]}" for i in (low, high)]
    place = f"{short_layer(layer.layer)}, heads {layer.merges[merge]}"
    words = f"Alpha changes most with the timestep in {place}: from {ends[0]} to {ends[1]}."
    return float(np.ptp(means[:, merge])), words
