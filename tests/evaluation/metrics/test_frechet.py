"""The Frechet distance against its formula, closed forms and torch-fidelity."""

import numpy as np
import pytest
import scipy.linalg
import torch
from evaluating import rows

from dit_shd.core.errors import UserError
from dit_shd.evaluation.feature_set import FeatureSet, Statistics
from dit_shd.evaluation.metrics.frechet import Frechet, frechet_distance, trace_sqrt_product


def gaussian(mean: list[float], variances: list[float]) -> Statistics:
    return Statistics(0, torch.tensor(mean).double(), torch.diag(torch.tensor(variances).double()))


def statistics_only(statistics: Statistics) -> Statistics:
    return Statistics(statistics.n, statistics.mean, statistics.covariance)


@pytest.mark.parametrize("d", [1, 5, 40])
def test_frechet_is_the_formula_with_scipys_square_root(d):
    one, two = Statistics.of(rows(300, d, seed=2)), Statistics.of(rows(200, d, seed=3, scale=1.5, shift=0.3))
    root = scipy.linalg.sqrtm(one.covariance.numpy() @ two.covariance.numpy())
    difference = (one.mean - two.mean).numpy()
    expected = difference @ difference + float((one.covariance + two.covariance).trace()) - 2 * np.trace(root).real
    assert frechet_distance(one, two) == pytest.approx(expected, rel=1e-9)


def test_frechet_of_diagonal_gaussians_has_a_closed_form():
    """Sum of (m1 - m2)^2 + (sqrt v1 - sqrt v2)^2."""
    one = gaussian([0.0, 1.0, -2.0], [1.0, 4.0, 9.0])
    two = gaussian([0.5, 1.0, 3.0], [16.0, 0.25, 9.0])
    assert frechet_distance(one, two) == pytest.approx(0.25 + 25 + 9 + 1.5**2, rel=1e-13)


def test_frechet_of_diagonal_gaussians_with_zero_variances():
    one = gaussian([0.0, 0.0, 0.0], [1.0, 4.0, 0.0])
    two = gaussian([1.0, 0.0, 0.0], [0.0, 1.0, 9.0])
    assert frechet_distance(one, two) == pytest.approx(1 + (1 + 1 + 9), rel=1e-13)


@pytest.mark.parametrize("n", [30, 200])
@pytest.mark.parametrize("side", ["features", "statistics", "mixed"])
def test_frechet_of_singular_covariances_is_that_of_the_space_they_live_in(n, side):
    """Rotating r-dimensional features into d > r dimensions keeps the distance; the covariances are singular.

    n = 30 images are also fewer than the d = 50 features.
    """
    r, d = 6, 50
    basis = torch.from_numpy(scipy.linalg.qr(np.random.default_rng(4).standard_normal((d, r)), mode="economic")[0])
    x, y = rows(n, r, seed=5), rows(n + 7, r, seed=6, shift=0.2)
    expected = frechet_distance(Statistics.of(x), Statistics.of(y))
    one, two = Statistics.of(x @ basis.T), Statistics.of(y @ basis.T)
    if side != "features":
        two = statistics_only(two)
    if side == "statistics":
        one = statistics_only(one)
    assert frechet_distance(one, two) == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("side", ["features", "statistics"])
def test_one_singular_and_one_regular_covariance_agree_with_scipy(side):
    one, two = Statistics.of(rows(10, 20, seed=7)), Statistics.of(rows(400, 20, seed=8))
    square = scipy.linalg.sqrtm(two.covariance.numpy())
    eigenvalues = np.linalg.eigvalsh(square @ one.covariance.numpy() @ square)[-9:]  # rank 9: 10 centred images
    if side == "statistics":  # eigenvalues that are zero but for rounding must not count: their roots would
        one = statistics_only(one)
    assert float(trace_sqrt_product(one, two)) == pytest.approx(np.sqrt(eigenvalues).sum(), rel=1e-10)


@pytest.mark.parametrize("n", [15, 300])
def test_frechet_is_symmetric_and_zero_for_equal_sets(n):
    one, two = Statistics.of(rows(n, 20, seed=12)), Statistics.of(rows(n, 20, seed=13))
    assert frechet_distance(one, two) == pytest.approx(frechet_distance(two, one), rel=1e-11)
    assert abs(frechet_distance(one, one)) < 1e-11 * float(one.covariance.trace())
    features = FeatureSet.of(rows(n, 20, seed=12))
    assert Frechet().compute(features, features)["FD(features)"] >= 0


def test_moving_a_set_moves_it_by_the_square_of_the_step():
    x = rows(100, 8, seed=14)
    step = torch.arange(8).double()
    assert frechet_distance(Statistics.of(x), Statistics.of(x + step)) == pytest.approx(140.0, rel=1e-10)


def test_frechet_agrees_with_torch_fidelity():
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    x, y = rows(500, 30, seed=15).float(), rows(400, 30, seed=16, shift=0.1).float()
    theirs = fid_statistics_to_metric(*(fid_features_to_statistics(f.double()) for f in (x, y)), verbose=False)
    ours = frechet_distance(Statistics.of(x), Statistics.of(y))
    assert ours == pytest.approx(theirs["frechet_inception_distance"], rel=1e-9)


def test_frechet_refuses_two_networks():
    with pytest.raises(UserError, match="found 3 and 4"):
        frechet_distance(Statistics.of(rows(9, 3, seed=0)), Statistics.of(rows(9, 4, seed=0)))
