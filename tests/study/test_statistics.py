"""Against scipy's own tests, definitions, and many repeated studies."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats

from dit_shd.study.report import signed
from dit_shd.study.statistics import detectable_difference, holm, holm_confidence, paired_difference, power_of, summary


@pytest.mark.parametrize("n", [2, 3, 5, 30])
def test_a_paired_difference_is_scipys_paired_t_test(n):
    rng = np.random.default_rng(n)
    first, second = rng.normal(3, 1, n), rng.normal(2, 2, n)
    found, wanted = paired_difference(first, second), stats.ttest_rel(first, second)
    interval = wanted.confidence_interval(0.95)
    assert found.n == n
    np.testing.assert_allclose([found.low, found.high, found.p], [interval.low, interval.high, wanted.pvalue])
    assert found.mean == pytest.approx(first.mean() - second.mean())


def test_order_of_the_pairs_and_the_sign_of_the_difference():
    found, turned = paired_difference([1, 5, 3], [2, 3, 9]), paired_difference([9, 2, 3], [3, 1, 5])
    assert (turned.mean, turned.low, turned.high, turned.p) == pytest.approx(
        (-found.mean, -found.high, -found.low, found.p)
    )


def test_one_seed_tells_no_interval():
    alone = paired_difference([2.0], [1.5])
    assert (alone.n, alone.mean) == (1, 0.5) and math.isnan(alone.low) and math.isnan(alone.p)
    assert math.isnan(paired_difference([], []).mean)
    assert paired_difference([2.0, 3.0], [2.0, 3.0]).p == 1
    with pytest.raises(ValueError, match="as many values"):
        paired_difference([1.0, 2.0], [1.0])


def test_equal_differences_are_what_the_sign_test_makes_of_them():
    """0.93 - 0.91 and 0.94 - 0.92 differ by rounding, of which a t-test makes p = 2e-15."""
    for first, second in (([0.93, 0.94], [0.91, 0.92]), ([2.0, 3.0], [1.0, 2.0])):
        found = paired_difference(first, second)
        assert found.p == 0.5 and found.mean == pytest.approx(first[0] - second[0])
        assert math.isnan(found.low) and math.isnan(found.high) and math.isnan(found.detectable)
    eight = paired_difference([1.0] * 8, [0.5] * 8)
    assert eight.p < 0.01 and eight.p == pytest.approx(stats.binomtest(8, 8, 0.5).pvalue)
    same = paired_difference([0.1 + 0.2, 0.5], [0.3, 0.5])
    assert (same.mean, same.p) == (0, 1)
    assert all(math.isnan(x) for x in (same.low, same.high, same.detectable))  # two seeds show no certainty of 0


def test_a_diverged_seed_is_no_difference_of_zero():
    """Its perplexity is infinite, and rounding is measured by the other figures."""
    for first, second, mean in (([math.inf, 30, 31], [28, 29, 30], math.inf), ([28, 29], [30, math.inf], -math.inf)):
        found = paired_difference(first, second)
        assert found.mean == mean and all(math.isnan(x) for x in (found.low, found.high, found.p, found.detectable))
    assert math.isnan(paired_difference([math.inf, 1.0], [math.inf, 2.0]).mean)
    assert signed(math.inf) == "+inf"


def test_equal_variants_are_not_found_different_more_often_than_holm_allows():
    """Accuracies of 500 images by two seeds, ten comparisons: one study in twenty may err."""
    draw, studies, errors = np.random.default_rng(0), 60, 0
    for _ in range(studies):
        shares = np.round(500 * draw.normal(0.9, 0.01, (10, 2, 2))) / 500
        errors += min(holm([paired_difference(*pair).p for pair in shares])) < 0.05
    assert errors <= stats.binom.ppf(1 - 1e-6, studies, 0.05)


def closed_testing(p_values):
    """Holm as a closed test: the largest Bonferroni p-value of all sets of hypotheses that hold a hypothesis."""
    corrected = [0.0] * len(p_values)
    for size in range(1, len(p_values) + 1):
        for chosen in itertools.combinations(range(len(p_values)), size):
            bonferroni = min(1.0, size * min(p_values[i] for i in chosen))
            for i in chosen:
                corrected[i] = max(corrected[i], bonferroni)
    return corrected


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closed_test_of_bonferroni(p_values):
    np.testing.assert_allclose(holm(p_values), closed_testing(p_values))


@example([0.03, 0.04])  # the second fails at the level of the first
@given(st.lists(st.floats(1e-6, 1), min_size=1, max_size=8))
def test_corrected_intervals_and_corrected_p_values_agree(p_values):
    """An interval of confidence c leaves 0 out where p <= 1 - c."""
    for p, corrected, confidence in zip(p_values, holm(p_values), holm_confidence(p_values)):
        if abs(corrected - 0.05) > 1e-9:
            assert (p <= 1 - confidence) == (corrected <= 0.05)
        assert 0.95 - 1e-12 <= confidence <= 1 - 0.05 / len(p_values) + 1e-12


def test_unknown_p_values_count_as_ones():
    """So that what is said of the others holds whatever becomes of them."""
    found, of_ones = holm([math.nan, 0.01, 0.04]), holm([1.0, 0.01, 0.04])
    assert math.isnan(found[0]) and found[1:] == of_ones[1:] == [0.03, 0.08]
    assert holm_confidence([math.nan, 0.01, 0.04])[1:] == holm_confidence([1.0, 0.01, 0.04])[1:]
    assert holm([]) == []


@pytest.mark.parametrize("n", [2, 3, 5, 12])
def test_power_is_that_of_the_noncentral_t(n):
    limit = stats.t.ppf(0.975, n - 1)
    for size in (0.0, 0.3, 1.0):
        shift = size * math.sqrt(n)
        wanted = stats.nct.sf(limit, n - 1, shift) + stats.nct.cdf(-limit, n - 1, shift)
        assert power_of(-2 * size, 2.0, n) == pytest.approx(wanted)


def test_the_detectable_difference_is_found_four_times_in_five():
    n, deviation = 5, 0.7
    size = detectable_difference(deviation, n)
    draws = np.random.default_rng(0).normal(size, deviation, (20_000, n))
    found = stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.01)
    assert detectable_difference(2 * deviation, n) == pytest.approx(2 * size)
    assert detectable_difference(deviation, 10) < size
    assert math.isnan(detectable_difference(1.0, 1))


def test_a_summary_of_few_values():
    assert summary([1.0, 2.0, 4.0]).deviation == pytest.approx(np.std([1, 2, 4], ddof=1))
    assert math.isnan(summary([1.0]).deviation) and math.isnan(summary([]).mean)


@pytest.mark.filterwarnings("error")
def test_runs_that_have_diverged_have_a_summary():
    values = summary([math.inf, 3.0])
    assert values.mean == math.inf and math.isnan(values.deviation)
    assert summary([1e304, 1e304, 2e304]).mean > 1e304
