"""Alpha, each merge by itself: two merges of 0.15 and 0.8 are two columns, and nothing is drawn at a half."""

import re

import numpy as np

from dit_shd.reports.figures.alpha import LayerAlpha, alpha_charts, by_timestep, merge_legend, timestep_charts
from dit_shd.squeezing.plans import merge_names

PLAN = ((0, 1), (2, 3, 4))


def layer() -> LayerAlpha:
    r = np.random.default_rng(0)
    centres = np.array([0.15, 0.8, 0.3])
    alpha = (centres + 0.02 * r.standard_normal((200, 3))).clip(0, 1)
    return LayerAlpha("blocks.0.attn", merge_names(PLAN), alpha, r.integers(0, 1000, 200))


def test_merges_are_named_by_their_heads_in_the_plans_order():
    assert merge_names(PLAN) == ["0|1", "2|3", "2+3|4"]
    assert merge_names(((1,), (0,))) == []


def test_each_merge_has_its_own_histogram_and_median():
    (chart,) = alpha_charts([layer()])
    svg = chart.svg()
    medians = re.findall(r"heads (\S+): median ([\d.]+)", svg)
    assert [name for name, _ in medians] == ["0|1", "2|3", "2+3|4"]
    assert np.allclose([float(value) for _, value in medians], [0.15, 0.8, 0.3], atol=0.01)
    filled = [(float(low), float(high)) for low, high in re.findall(r"alpha ([\d.]+) to ([\d.]+) in", svg)]
    assert not [pair for pair in filled if pair[0] > 0.45 and pair[1] < 0.65], "no merge is near a half"
    dashed = [float(y) for y in re.findall(r'class="rule" points="[\d.]+,([\d.]+)', svg)]
    assert np.allclose(dashed, [chart.place(0, even)[1] for even in (1 / 2, 1 / 2, 2 / 3)], atol=0.06)
    counts = [int(n) for n in re.findall(r" in (\d+) of 200", svg)]
    assert sum(counts) == 3 * 200


def test_timesteps_are_taken_together():
    t = np.array([0, 50, 999, 950] * 30)
    places, means, spreads = by_timestep(t, np.where(t < 500, 0.2, 0.7), 1000)
    assert places == [0, 50, 950, 999]
    assert np.allclose(means, [0.2, 0.2, 0.7, 0.7]) and spreads.max() < 1e-9
    places, means, _ = by_timestep(np.arange(1000), np.arange(1000) / 1000, 1000)
    assert len(places) == 10 and np.allclose(means, (np.arange(10) + 0.495) / 10)


def test_lines_are_named_by_the_heads_of_their_merge():
    (chart,) = timestep_charts([layer()])
    assert re.findall(r'data-name="([^"]*)"', chart.svg()) == ["heads 0|1", "heads 2|3", "heads 2+3|4"]
    assert list(merge_legend([layer()])) == ["heads 0|1", "heads 2|3", "heads 2+3|4"]
