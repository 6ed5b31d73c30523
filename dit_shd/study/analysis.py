"""What the rows of a study show: each variant over its seeds, compared ones seed by seed, claims judged."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from scipy import stats

from dit_shd.reports.tables import direction, higher_is_better
from dit_shd.study.design import Claim, Study
from dit_shd.study.results import CellResult
from dit_shd.study.statistics import (
    ALPHA,
    Difference,
    Summary,
    holm,
    holm_confidence,
    interval,
    paired_difference,
    summary,
)

Verdict = Literal[
    "seen",
    "seen, too small to matter",
    "the opposite is seen",
    "the opposite is seen, too small to matter",
    "not seen",
    "cannot be told",
    "one seed so far",
    "not all seeds yet",
    "seeds failed",
    "figure missing",
    "not run yet",
    "wants higher_is_better",
]


@dataclass(frozen=True)
class Variant:
    """The rows of one variant."""

    name: str
    done: Sequence[CellResult]
    failed: Sequence[CellResult]

    def by_seed(self, figure: str) -> dict[int, float]:
        """Seed -> a figure, for seeds that have it."""
        return {row.seed: row.figures[figure] for row in self.done if figure in row.figures}

    def summary(self, figure: str) -> Summary:
        return summary(list(self.by_seed(figure).values()))

    def mean(self, of: Callable[[CellResult], float]) -> float:
        """The mean of a number over finished rows."""
        return summary([of(row) for row in self.done]).mean

    @property
    def training_seconds(self) -> float:
        """CPU seconds of training, on average; nan for a model that is scored as it is."""
        return self.mean(lambda row: row.cpu_seconds.get("train", math.nan))


@dataclass(frozen=True)
class Comparison:
    """Two variants in one figure."""

    variant: str
    other: str
    difference: Difference
    """variant - other."""
    holm_p: float
    """Corrected for all comparisons of the study."""
    corrected: tuple[float, float]
    """Interval that is corrected likewise: it holds 0 unless holm_p is below 0.05."""
    complete: bool = True
    """Whether all cells of both variants have ended: who judges while they come in, and stops where it suits, finds
    differences by chance more often than the level says."""

    failed: bool = False
    """Whether a seed of one of the two failed: those that are left are chosen by it, as where training diverged."""

    missing: bool = False
    """Whether a cell of one of the two is done and lacks the figure."""

    @property
    def certain(self) -> bool:
        """Whether such a difference is unlikely by chance."""
        return self.holm_p < ALPHA

    def reversed(self) -> "Comparison":
        """The same test, of the other variant against this one."""
        d, (low, high) = self.difference, self.corrected
        difference = replace(d, mean=-d.mean, low=-d.high, high=-d.low)
        return replace(self, variant=self.other, other=self.variant, difference=difference, corrected=(-high, -low))


@dataclass(frozen=True)
class Judgement:
    """A claim and what the seeds say of it."""

    claim: Claim
    comparison: Comparison
    verdict: Verdict


@dataclass(frozen=True)
class Disagreement:
    """A comparison in which two evaluators rank the variants differently, at least one of them not by chance."""

    figure: str
    first: Comparison
    second_figure: str
    second: Comparison

    @property
    def uncertain(self) -> str | None:
        """The figure whose difference may be chance; None where neither is."""
        pairs = (self.figure, self.first), (self.second_figure, self.second)
        return next((figure for figure, comparison in pairs if not comparison.certain), None)


@dataclass(frozen=True)
class Analysis:
    """Everything that is said of a study."""

    study: Study
    figure: str
    """The one that decides."""
    figures: Sequence[str]
    """All that every finished cell with figures has, and the one that decides, if any has it."""
    variants: Sequence[Variant]
    comparisons: Sequence[Comparison]
    judgements: Sequence[Judgement]
    disagreements: Sequence[Disagreement]
    rank_correlation: dict[str, float]
    """Other Frechet distances -> Kendall's tau of the variants' means with those of the deciding figure."""

    @property
    def higher_is_better(self) -> bool | None:
        """Whether the figure that decides is better the higher it is; None where nothing says it."""
        return better_higher(self.study, self.figure)

    @property
    def rows(self) -> list[CellResult]:
        return [row for variant in self.variants for row in (*variant.done, *variant.failed)]

    @property
    def cpu_hours(self) -> float:
        return sum(row.cpu_hours for row in self.rows)


def analyse(study: Study, rows: Iterable[CellResult]) -> Analysis:
    """The analysis of the rows of a study's cells, whether all are there or not."""
    rows = list(rows)
    variants = [Variant(name, _of(rows, name, done=True), _of(rows, name, done=False)) for name in study.names]
    figure = study.figure or next((name for row in rows if row.done for name in row.figures if not _is_std(name)), "")
    figures = _shared_figures(rows, figure)
    others = [name for name in figures if name != figure and name.partition("(")[0] == figure.partition("(")[0]]
    comparisons = compare(study, variants, figure)
    return Analysis(
        study=study,
        figure=figure,
        figures=figures,
        variants=variants,
        comparisons=comparisons,
        judgements=[_judge(claim, comparisons, better_higher(study, figure), study.relevant) for claim in study.claims],
        disagreements=[
            d for name in others for d in _disagreements(figure, comparisons, name, compare(study, variants, name))
        ],
        rank_correlation={name: _rank_correlation(variants, figure, name) for name in others},
    )


def compare(study: Study, variants: Sequence[Variant], figure: str) -> list[Comparison]:
    """All comparisons of a study in one figure, over the seeds that both variants have."""
    values = {variant.name: variant.by_seed(figure) for variant in variants}
    pairs: list[tuple[str, str, Difference]] = []
    for name, other in study.comparisons:
        seeds = sorted(values[name].keys() & values[other].keys())
        difference = paired_difference([values[name][s] for s in seeds], [values[other][s] for s in seeds])
        pairs.append((name, other, difference))
    p_values = [difference.p for *_, difference in pairs]
    levels = zip(pairs, holm(p_values), holm_confidence(p_values))
    ended = {v.name: {row.seed for row in (*v.done, *v.failed)} >= set(study.seeds) for v in variants}
    failed = {v.name for v in variants if v.failed}
    missing = {v.name for v in variants if any(figure not in row.figures for row in v.done if row.seed in study.seeds)}
    return [
        Comparison(
            variant=one,
            other=other,
            difference=d,
            holm_p=p,
            corrected=interval(d, level),
            complete=ended[one] and ended[other],
            failed=bool(failed & {one, other}),
            missing=bool(missing & {one, other}),
        )
        for (one, other, d), p, level in levels
    ]


def verdict_of(comparison: Comparison, higher_is_better: bool | None, relevant: float) -> Verdict:
    """What is said of the claim that `variant` is better than `other`.

    seen: better, and unlikely by chance (p below 0.05 after Holm's correction); too small to matter where the whole
    interval lies within the smallest difference that would. not seen: the whole interval lies below that. Else it
    cannot be told from so few seeds. Nothing is said before all seeds of the study have ended, nor where some of the
    two failed, or lack the figure.
    """
    if comparison.missing:
        return "figure missing"
    if comparison.failed:
        return "seeds failed" if comparison.complete else "not all seeds yet"
    if comparison.difference.n < 2:
        return "one seed so far" if comparison.difference.n else "not run yet"
    if not comparison.complete:
        return "not all seeds yet"
    if higher_is_better is None:
        return "wants higher_is_better"
    sign = 1 if higher_is_better else -1
    gain = sign * comparison.difference.mean
    ends = sign * comparison.difference.low, sign * comparison.difference.high
    if comparison.certain:
        small = (abs(gain) if any(map(math.isnan, ends)) else max(map(abs, ends))) < relevant  # equal ones have no ends
        if gain > 0:
            return "seen, too small to matter" if small else "seen"
        return "the opposite is seen, too small to matter" if small else "the opposite is seen"
    most = max(ends)
    return "not seen" if most < relevant else "cannot be told"


def _of(rows: Iterable[CellResult], variant: str, done: bool) -> list[CellResult]:
    return sorted((r for r in rows if r.variant == variant and r.done == done), key=lambda row: row.seed)


def _shared_figures(rows: Iterable[CellResult], figure: str) -> list[str]:
    """Names of figures that all finished rows with figures have, and the deciding one; no deviations of a file."""
    done = [row.figures for row in rows if row.done and row.figures]
    names = dict.fromkeys(name for figures in done for name in figures if not _is_std(name))
    return [name for name in names if name == figure or all(name in figures for figures in done)]


def _is_std(name: str) -> bool:
    """Whether a figure is the deviation of another inside of one file of samples."""
    return name.partition(" by ")[0].endswith(" std")


def better_higher(study: Study, figure: str) -> bool | None:
    """Whether a figure is better the higher it is: as the study file or else its name says; None where neither does."""
    if study.higher_is_better is not None or not direction(figure):
        return study.higher_is_better
    return higher_is_better(figure)


def _judge(claim: Claim, comparisons: Sequence[Comparison], higher: bool | None, relevant: float) -> Judgement:
    pair = claim.better, claim.than
    comparison = next(
        c if (c.variant, c.other) == pair else c.reversed() for c in comparisons if {c.variant, c.other} == set(pair)
    )
    return Judgement(claim, comparison, verdict_of(comparison, higher, relevant))


def _disagreements(
    figure: str, first: Sequence[Comparison], second_figure: str, second: Sequence[Comparison]
) -> list[Disagreement]:
    return [
        Disagreement(figure, a, second_figure, b)
        for a, b in zip(first, second)
        if a.difference.mean * b.difference.mean < 0 and (a.certain or b.certain)
    ]


def _rank_correlation(variants: Sequence[Variant], figure: str, other: str) -> float:
    """Kendall's tau of the variants' means in two figures."""
    both = [v for v in variants if v.by_seed(figure) and v.by_seed(other)]
    pairs = [(v.summary(figure).mean, v.summary(other).mean) for v in both]
    first, second = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    tau: Any = stats.kendalltau(first, second)[0] if len(pairs) > 1 else math.nan
    return float(tau)
