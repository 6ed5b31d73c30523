"""What rows show: pairs of the same seed, corrected together; verdicts; evaluators that disagree."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from dit_shd.core.config import make
from dit_shd.core.errors import UserError
from dit_shd.study.analysis import Comparison, analyse, verdict_of
from dit_shd.study.design import Study
from dit_shd.study.results import CellResult
from dit_shd.study.statistics import Difference, paired_difference

VALUES = {
    "title": "t",
    "config": "base.yaml",
    "grid": {"loss": {"output": {}, "shd": {}, "hard": {}}},
    "seeds": [0, 1, 2, 3],
    "baseline": {"loss": "output"},
    "claims": [{"text": "x", "better": "shd", "than": "hard"}],
}


def row(variant, seed, value, other=0.0, **changes):
    figures = {"FD(a)": value, "IS(a)": 1.0, "IS(a) std": 0.1, "IS(a) std by b": 0.1, "FD(b)": other}
    values = {"figures": figures, "cpu_seconds": {"train": 90.0, "sample": 90.0}, **changes}
    return CellResult(cell=0, variant=variant, seed=seed, sha256="", status="done", **values)


def failed(variant, seed):
    return CellResult(cell=0, variant=variant, seed=seed, sha256="", status="failed", error="out of memory")


FIGURES = {"output": [9.0, 8.0, 9.5, 9.1], "shd": [7.0, 6.5, 7.7, 7.2], "hard": [7.1, 6.4, 7.6, 7.4]}
ROWS = [row(variant, seed, value) for variant, values in FIGURES.items() for seed, value in enumerate(values)]


def analysis(rows, **changes):
    return analyse(make(Study, {**VALUES, **changes}), rows)


def test_variants_are_paired_by_seed_and_corrected_together():
    found = analysis(ROWS[::-1])
    assert [(c.variant, c.other) for c in found.comparisons] == [
        ("shd", "hard"), ("shd", "output"), ("hard", "output"),
    ]  # fmt: skip
    tests = [stats.ttest_rel(FIGURES[c.variant], FIGURES[c.other]).pvalue for c in found.comparisons]
    np.testing.assert_allclose([c.difference.p for c in found.comparisons], tests)
    first, second, third = sorted(tests)
    wanted = [3 * first, max(3 * first, 2 * second), max(3 * first, 2 * second, third)]
    np.testing.assert_allclose(sorted(c.holm_p for c in found.comparisons), wanted)
    for c in found.comparisons:
        low, high = c.corrected
        assert low <= c.difference.low < c.difference.high <= high
        assert (low <= 0 <= high) == (c.holm_p > 0.05)
    sharpest = min(found.comparisons, key=lambda c: c.difference.p)
    paired = stats.ttest_rel(FIGURES[sharpest.variant], FIGURES[sharpest.other]).confidence_interval(1 - 0.05 / 3)
    np.testing.assert_allclose(sharpest.corrected, [paired.low, paired.high])


def test_figures_that_not_every_row_has_are_left_out():
    assert analysis(ROWS).figures == ["FD(a)", "IS(a)", "FD(b)"]
    assert analysis(ROWS).figure == "FD(a)"
    assert analysis([*ROWS, row("shd", 9, 1.0, figures={"FD(b)": 1.0})]).figures == ["FD(a)", "FD(b)"], "it decides"
    assert analysis([row("shd", 9, 1.0, figures={}), *ROWS]).figures == ["FD(a)", "IS(a)", "FD(b)"], "of rows with any"
    assert analysis(ROWS, figure="FD(b)").figure == "FD(b)"
    last = analysis([*ROWS, row("shd", 9, 1.0, figures={"FD(b)": 1.0})])
    assert last.figure == "FD(a)" and last.comparisons == analysis(ROWS).comparisons, "a row without it decides nothing"


def test_of_a_score_more_is_better_whatever_the_study_file_leaves_out():
    scores = {"output": [1.0, 1.2, 1.1, 1.0], "shd": [3.0, 3.1, 3.2, 2.9], "hard": [1.1, 1.0, 1.0, 1.2]}
    rows = [
        row(v, seed, 0.0, figures={"IS(a)": value}) for v, values in scores.items() for seed, value in enumerate(values)
    ]
    assert [j.verdict for j in analysis(rows).judgements] == ["seen"]
    assert [j.verdict for j in analysis(rows, higher_is_better=False).judgements] == ["the opposite is seen"]
    assert not analysis(ROWS).higher_is_better


def test_a_figure_of_which_nothing_says_the_better_direction_has_no_verdict():
    rows = [
        row(v, seed, 0.0, figures={"sharpness": 3.0 * (v == "shd") + seed + 0.1 * (v == "hard") * seed**2})
        for v in ("output", "shd", "hard")
        for seed in range(4)
    ]
    assert [j.verdict for j in analysis(rows).judgements] == ["wants higher_is_better"]
    assert analysis(rows).higher_is_better is None


def test_both_directions_of_a_claim_are_one_test():
    claims = [{"text": "x", "better": a, "than": b} for a, b in (("shd", "output"), ("output", "shd"))]
    found, alone = analysis(ROWS, claims=claims), analysis(ROWS, claims=claims[:1])
    assert found.comparisons == alone.comparisons
    one, other = (judgement.comparison for judgement in found.judgements)
    assert (other.variant, other.other, other.difference.mean) == ("output", "shd", -one.difference.mean)
    assert other.corrected == (-one.corrected[1], -one.corrected[0]) and other.holm_p == one.holm_p
    assert (other.difference.low, other.difference.high) == (-one.difference.high, -one.difference.low)
    grid = {"loss": {"output": {"losses": []}, "shd": {}}}
    itself = make(Study, {**VALUES, "grid": grid, "claims": [{"text": "x", "better": "shd", "than": "shd"}]})
    with pytest.raises(UserError, match=r"study.claims: wanted two variants, found shd and itself"):
        itself.check()


def test_a_claim_of_the_baseline_is_one_test_and_not_two():
    claims = [{"text": "x", "better": "output", "than": "shd"}]
    assert [(c.variant, c.other) for c in analysis(ROWS, claims=claims).comparisons] == [
        ("output", "shd"), ("hard", "output"),
    ]  # fmt: skip


def test_a_seed_that_failed_is_shown_and_not_paired():
    found = analysis([*(r for r in ROWS if (r.variant, r.seed) != ("shd", 2)), failed("shd", 2)])
    assert [len(variant.failed) for variant in found.variants] == [0, 1, 0]
    pairs = {(c.variant, c.other): c.difference for c in found.comparisons}
    kept = [0, 1, 3]
    assert pairs["shd", "output"].n == 3
    assert pairs["shd", "output"].mean == pytest.approx(
        np.mean([FIGURES["shd"][i] - FIGURES["output"][i] for i in kept])
    )
    assert pairs["hard", "output"].n == 4
    assert found.cpu_hours == pytest.approx(11 * 180 / 3600)


def test_nothing_to_compare_yet():
    found = analysis([])
    assert found.figure == "" and [c.difference.n for c in found.comparisons] == [0, 0, 0]
    assert found.judgements[0].verdict == "not run yet"
    of_one_seed = [row(name, 0, 1.0) for name in ("shd", "hard", "output")]
    assert analysis(of_one_seed).judgements[0].verdict == "one seed so far"
    assert math.isnan(analysis([row("shd", 0, 1.0)]).comparisons[0].difference.mean)


@pytest.mark.parametrize(
    ("mean", "half", "p", "verdict"),
    [
        (-1.0, 0.5, 0.01, "seen"),
        (1.0, 0.5, 0.01, "the opposite is seen"),
        (-0.3, 0.1, 0.01, "seen, too small to matter"),
        (-0.3, 0.25, 0.01, "seen"),
        (0.3, 0.1, 0.01, "the opposite is seen, too small to matter"),
        (-1.0, 0.9, 0.06, "cannot be told"),
        (-0.1, 0.2, 0.5, "not seen"),
        (-0.1, 0.5, 0.5, "cannot be told"),
        (1.0, 0.9, 0.06, "not seen"),
        (math.nan, math.nan, math.nan, "cannot be told"),
    ],
)
def test_verdicts(mean, half, p, verdict):
    """Half a point is the smallest gain that matters."""
    lower = Comparison("a", "b", Difference(5, mean, 1, mean - half, mean + half, 0, 0), p, (0, 0))
    higher = Comparison("a", "b", Difference(5, -mean, 1, -mean - half, -mean + half, 0, 0), p, (0, 0))
    assert verdict_of(lower, higher_is_better=False, relevant=0.5) == verdict
    assert verdict_of(higher, higher_is_better=True, relevant=0.5) == verdict
    assert verdict_of(replace(lower, complete=False), higher_is_better=False, relevant=0.5) == "not all seeds yet"


def test_no_verdict_while_seeds_of_the_two_are_to_come():
    """Whatever the ones that ended show; a seed that failed has ended."""
    claims = [{"text": "x", "better": "shd", "than": "output"}]
    whole = analysis(ROWS, claims=claims).judgements[0].verdict
    assert whole != "not all seeds yet"
    last = max(row.seed for row in ROWS)
    left = [row for row in ROWS if (row.variant, row.seed) != ("shd", last)]
    assert analysis(left, claims=claims).judgements[0].verdict == "not all seeds yet"
    assert analysis([*left, failed("shd", last)], claims=claims).judgements[0].verdict != "not all seeds yet"
    others = [row for row in ROWS if (row.variant, row.seed) != ("hard", last)]
    assert analysis(others, claims=claims).judgements[0].verdict == whole


def test_variants_that_agree_in_two_seeds_tell_nothing():
    """Shares of few images are often equal; that is no evidence that the variants are."""
    found = paired_difference([0.93, 0.95], [0.93, 0.95])
    assert verdict_of(Comparison("a", "b", found, found.p, (0, 0)), higher_is_better=True, relevant=0.01) == (
        "cannot be told"
    )


def test_a_difference_that_is_equal_in_all_seeds_can_be_too_small_to_matter():
    found = paired_difference([0.5 + seed + 1e-3 for seed in range(7)], [0.5 + seed for seed in range(7)])
    same = Comparison("a", "b", found, found.p, (0, 0))
    assert found.p < 0.05 and math.isnan(found.low)
    for higher, words in ((True, "seen"), (False, "the opposite is seen")):
        assert verdict_of(same, higher, relevant=0.5) == f"{words}, too small to matter"
        assert verdict_of(same, higher, relevant=5e-4) == words


def test_evaluators_that_rank_two_variants_differently():
    second = {"output": 3.0, "shd": 2.0, "hard": 1.0}

    def scored(noise: float):
        values = {(r.variant, r.seed): second[r.variant] + r.seed + noise * (-1) ** r.seed for r in ROWS}
        values |= {key: value - 2 * noise * (-1) ** key[1] for key, value in values.items() if key[0] == "hard"}
        return analysis([row(r.variant, r.seed, r.figures["FD(a)"], values[r.variant, r.seed]) for r in ROWS])

    found = scored(noise=0.001)
    (one,) = found.disagreements
    assert (one.first.variant, one.first.other, one.second_figure) == ("shd", "hard", "FD(b)")
    assert one.first.difference.mean == pytest.approx(-0.025) and one.second.difference.mean == pytest.approx(
        1, abs=0.01
    )
    assert one.second.certain and one.uncertain == (None if one.first.certain else "FD(a)")
    assert found.rank_correlation == {"FD(b)": pytest.approx(1 / 3)}
    assert not one.first.certain and not scored(noise=5).disagreements, "of noise nothing is said"


def test_nothing_is_said_of_the_seeds_that_are_left_where_some_failed():
    """Training that diverges in two of five seeds had been better, by the three that did not."""
    claims = [{"text": "x", "better": "shd", "than": "output"}]
    last = max(row.seed for row in ROWS)
    left = [row for row in ROWS if (row.variant, row.seed) != ("shd", last)]
    assert analysis([*left, failed("shd", last)], claims=claims).judgements[0].verdict == "seeds failed"
    other = [row for row in ROWS if (row.variant, row.seed) != ("output", last)]
    assert analysis([*other, failed("output", last)], claims=claims).judgements[0].verdict == "seeds failed"
    only, every = (range(last), "seeds failed"), (range(last + 1), "seeds failed")
    for seeds, verdict in (only, every, (range(1, last + 1), "seeds failed")):
        kept = [row for row in ROWS if row.variant != "shd" or row.seed not in seeds]
        rows = [*kept, *(failed("shd", seed) for seed in seeds)]
        assert analysis(rows, claims=claims).judgements[0].verdict == verdict, "and not: one seed so far, not run yet"
        assert analysis(rows[:-1], claims=claims).judgements[0].verdict == "not all seeds yet", "of cells that ran"
    assert analysis([*ROWS, failed("hard", last + 1)], claims=claims).judgements[0].verdict != "seeds failed"


def test_a_figure_that_rows_lack_is_missing_and_not_yet_to_come():
    assert analysis(ROWS, figure="FID(a)").judgements[0].verdict == "figure missing"
    assert analysis(ROWS[:3] + ROWS[8:], figure="FID(a)").judgements[0].verdict == "figure missing", "shd is to come"
    assert analysis([], figure="FID(a)").judgements[0].verdict == "not run yet"
    last = replace(ROWS[-1], figures={"FD(b)": 1.0})
    assert analysis([*ROWS[:-1], last], figure="FD(a)").judgements[0].verdict == "figure missing", "of one seed"
