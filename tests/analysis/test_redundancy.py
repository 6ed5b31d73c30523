"""Redundant intervals: fits against numpy's least squares on held-out samples; the best division by trying all."""

import itertools

import numpy as np
import pytest
import torch

from dit_shd.analysis.redundancy import LinearFits, best_intervals, plan_of
from dit_shd.core.errors import UserError


def borders(seed, count=5, b=6, n=30, e=4):
    """Tokens through layers of which the second and third are linear."""
    g = torch.Generator().manual_seed(seed)
    weights = torch.Generator().manual_seed(99)
    x = [torch.randn(b, n, e, generator=g)]
    for i in range(count - 1):
        y = x[-1] @ torch.randn(e, e, generator=weights)
        x.append(y + 0.3 if i in (1, 2) else y.sin())
    return x


def test_an_error_is_that_of_least_squares_on_samples_it_was_not_fitted_to():
    fits, seen = LinearFits(longest=3), [borders(0), borders(1, b=3), borders(2)]
    for one, number in zip(seen, (0, 6, 9)):
        fits.add(one, number)
    every = [torch.cat([one[i] for one in seen]).double().numpy() for i in range(5)]
    for first, last in [(0, 2), (1, 3), (0, 3), (2, 4)]:
        x, y = (every[k].reshape(15, 30, 4) for k in (first, last))
        ones = [np.concatenate([np.ones((8 - h, 30, 1)), x[h::2]], 2).reshape(-1, 5) for h in (0, 1)]
        targets = [y[h::2].reshape(-1, 4) for h in (0, 1)]
        fit = np.linalg.lstsq(ones[0], targets[0], rcond=None)[0]
        want = ((targets[1] - ones[1] @ fit) ** 2).sum() / ((targets[1] - targets[1].mean(0)) ** 2).sum()
        assert fits.error(first, last) == pytest.approx(want, rel=1e-3, abs=1e-6)
    assert fits.error(1, 3) < 1e-6 < 0.01 < fits.error(0, 2)
    assert fits.error(3, 4) == 0


def test_a_sample_is_in_the_same_half_at_every_timestep():
    """Three samples at two timesteps: what is known of the first and third is judged on the second."""
    fits, seen = LinearFits(longest=2), [borders(0, b=3), borders(1, b=3)]
    for one in seen:
        fits.add(one, 0)
    wide, targets = [], []
    for samples in ([0, 2], [1]):
        x, y = (torch.cat([one[i][samples] for one in seen]).double().flatten(0, 1) for i in (0, 2))
        wide.append(torch.cat([x.new_ones(len(x), 1), x], 1))
        targets.append(y)
    fit = torch.linalg.lstsq(wide[0], targets[0]).solution
    left = (targets[1] - wide[1] @ fit).square().sum()
    want = left / (targets[1] - targets[1].mean(0)).square().sum()
    assert fits.error(0, 2) == pytest.approx(float(want), rel=1e-3)


@pytest.mark.parametrize(("keep", "longest"), [(1, 7), (3, 3), (4, 2), (5, 7), (7, 1)])
def test_the_division_is_the_best_of_all(keep, longest):
    costs = np.random.default_rng(0).random((8, 8))

    def error(first, last):
        return 0.0 if last - first == 1 else float(costs[first, last])

    ways = []
    for cuts in itertools.combinations(range(1, 7), keep - 1):
        ends = [0, *cuts, 7]
        runs = list(itertools.pairwise(ends))
        if max(b - a for a, b in runs) <= longest:
            ways.append((sum(error(*run) for run in runs), runs))
    assert best_intervals(error, 7, keep, longest) == min(ways)[1]


def test_what_cannot_be_divided_is_refused():
    for keep, longest in [(0, 9), (8, 9), (2, 3)]:
        with pytest.raises(UserError, match=r"keep: wanted .* of 7 blocks"):
            best_intervals(lambda a, b: 0.0, 7, keep, longest)


def test_a_plan_names_the_first_and_the_last_of_each_run():
    plan = plan_of([f"b.{i}" for i in range(4)], [(0, 1), (1, 4)], [0.0, 0.5])
    assert plan.weights == {"b.0": "b.0", "b.1": "b.1"}
    assert plan.layers == {"b.0": "b.0", "b.1": "b.3"}
    assert plan.errors == {"b.0": 0.0, "b.1": 0.5}
