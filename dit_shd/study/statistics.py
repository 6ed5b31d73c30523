"""Statistics over training seeds: paired differences, corrections for many of them, what so few seeds could show.

Two variants are paired by seed: the same seed draws the same data, noise, first weights and sampling noise.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize, stats

ALPHA = 0.05
"""Share of studies in which a difference that is none is called certain."""
CONFIDENCE = 1 - ALPHA
POWER = 0.8
ROUNDING = 1e-12
"""Of float64, relative to the values: differences that are nearer to each other are equal."""


@dataclass(frozen=True)
class Summary:
    """The mean and the spread of values of one kind, one for each seed."""

    n: int
    mean: float
    deviation: float
    """Standard deviation (n - 1); NaN of one value."""


@dataclass(frozen=True)
class Difference:
    """What one variant has more than another, paired by seed."""

    n: int
    mean: float
    deviation: float
    """Standard deviation of the differences (n - 1)."""
    low: float
    high: float
    """Confidence interval of the mean difference (Student's t, n - 1 degrees of freedom)."""
    p: float
    """The p value of a two-sided paired t-test."""
    detectable: float
    """The true difference that so many seeds find in 80% of all studies; see `detectable_difference`."""


def summary(values: Sequence[float]) -> Summary:
    """Mean and standard deviation."""
    array = np.asarray(values, dtype=float)
    with np.errstate(invalid="ignore", over="ignore"):  # values of a run that has diverged
        deviation = array.std(ddof=1) if len(array) > 1 else math.nan
        return Summary(len(array), float(array.mean()) if len(array) else math.nan, float(deviation))


def paired_difference(first: Sequence[float], second: Sequence[float], confidence: float = CONFIDENCE) -> Difference:
    """The mean of first - second, seed by seed, with what is known of it; NaN where one seed tells nothing.

    Shares of few images are often equal in several seeds, and so are their differences. A t-test then takes chance for
    certainty (with two seeds and 500 images 4% of equal variants differ at any level), so p is the sign test's, and
    there is neither an interval nor a detectable difference, also where the variants agree in every seed.
    """
    if len(first) != len(second):
        raise ValueError(f"wanted as many values of both variants, found {len(first)} and {len(second)}")
    with np.errstate(invalid="ignore"):
        differences = _without_rounding(summary(np.subtract(first, second).tolist()), [*first, *second])
    if differences.n < 2:
        return Difference(differences.n, differences.mean, math.nan, math.nan, math.nan, math.nan, math.nan)
    error = differences.deviation / math.sqrt(differences.n)
    if error == 0:
        p = 1.0 if differences.mean == 0 else 2.0 ** (1 - differences.n)
    else:
        p = 2 * float(stats.t.sf(abs(differences.mean) / error, differences.n - 1))
    low, high = interval(differences, confidence)
    return Difference(
        differences.n,
        differences.mean,
        differences.deviation,
        low,
        high,
        p,
        detectable_difference(differences.deviation, differences.n),
    )


def _without_rounding(differences: Summary, values: Sequence[float]) -> Summary:
    """Mean and deviation of differences, 0 where they are rounding alone; of a diverged run infinite or NaN."""
    least = ROUNDING * max((abs(x) for x in values if math.isfinite(x)), default=0.0)
    mean, deviation = (0.0 if abs(x) <= least else x for x in (differences.mean, differences.deviation))
    return Summary(differences.n, mean, deviation)


def interval(values: Summary | Difference, confidence: float) -> tuple[float, float]:
    """The confidence interval of a mean (Student's t, n - 1 degrees of freedom); NaN of one value, or of equal ones."""
    if values.n < 2 or values.deviation == 0:
        return math.nan, math.nan
    half = float(stats.t.ppf((1 + confidence) / 2, values.n - 1)) * values.deviation / math.sqrt(values.n)
    return values.mean - half, values.mean + half


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number, step down (Holm 1979).

    Those that are NaN, of a test that has no result yet or of a run that diverged, count as ones: what is said of the
    others holds whatever becomes of them.
    """
    known = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    corrected = [math.nan] * len(p_values)
    largest = 0.0
    for rank, (p, i) in enumerate(known):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p))
        corrected[i] = largest
    return corrected


def holm_confidence(p_values: Sequence[float]) -> list[float]:
    """For each test the confidence of an interval that holds no difference unless Holm's correction finds one.

    The i-th smallest of m p-values is tested at ALPHA / (m - i + 1), up to the first that fails; all later ones fail at
    its level.
    """
    known = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    confidence, failed = [CONFIDENCE] * len(p_values), 0.0
    for rank, (p, i) in enumerate(known):
        level = failed or ALPHA / (len(p_values) - rank)
        failed = failed or (level if p > level else 0.0)
        confidence[i] = 1 - level
    return confidence


def power_of(difference: float, deviation: float, n: int) -> float:
    """How often a two-sided paired t-test of n pairs finds a true difference: t^2 is noncentral F(1, n - 1)."""
    if difference == 0 or deviation == 0:
        return 1.0 if difference else ALPHA
    limit = float(stats.t.ppf(1 - ALPHA / 2, n - 1)) ** 2
    return float(stats.ncf.sf(limit, 1, n - 1, n * (difference / deviation) ** 2))


def detectable_difference(deviation: float, n: int) -> float:
    """The smallest true difference that n pairs with this deviation find with POWER; NaN where it is 0."""
    if n < 2 or not deviation > 0:
        return math.nan
    most = 1.0
    while power_of(most, 1.0, n) < POWER:
        most *= 2
    ratio = optimize.brentq(lambda size: power_of(size, 1.0, n) - POWER, 0.0, most)
    return float(ratio) * deviation  # type: ignore[arg-type]
