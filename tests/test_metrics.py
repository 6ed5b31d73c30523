"""Laws and independent oracles of the metrics. All data are drawn here from fixed seeds."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dit_shd import registry
from dit_shd.errors import UserError
from dit_shd.metrics import FeatureSet, Moments
from dit_shd.metrics.frechet import Frechet, frechet_distance, trace_sqrt_product
from dit_shd.metrics.inception_score import InceptionScore, inception_score
from dit_shd.metrics.precision_recall import PrecisionRecall, precision_recall, radii, squared_distances


def rows(n: int, d: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> torch.Tensor:
    """Correlated features [n, d] in float64 whose directions have different widths."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((d, d)) * np.geomspace(1, 0.05, d)
    return torch.from_numpy(rng.standard_normal((n, d)) @ mixing * scale + shift)


def statistics_only(features: FeatureSet) -> FeatureSet:
    return FeatureSet(features.n, features.mean, features.covariance)


def gaussian(mean: list[float], variances: list[float]) -> FeatureSet:
    return FeatureSet(0, torch.tensor(mean).double(), torch.diag(torch.tensor(variances).double()))


# Statistics


@pytest.mark.parametrize("shift", [0.0, 1e6])
@pytest.mark.parametrize("block", [1, 7, 1000])
def test_moments_of_blocks_are_numpys_even_far_from_zero(block, shift):
    x = rows(100, 6, seed=0, shift=shift)
    moments = Moments()
    for part in x.split(block):
        moments.add(part)
    assert moments.n == 100
    # The data themselves are rounded to eps * shift; the tolerance is that, not more.
    tolerance = 1e-12 if shift == 0 else 1e-8
    np.testing.assert_allclose(moments.mean(), x.numpy().mean(0), rtol=1e-13, atol=1e-12)
    np.testing.assert_allclose(moments.covariance(), np.cov(x.numpy(), rowvar=False), rtol=0, atol=tolerance)


def test_moments_of_float32_rows_are_summed_in_float64():
    x = rows(3000, 4, seed=1, shift=1000).float()
    features = FeatureSet.of(x, block=64)
    assert features.mean.dtype == features.covariance.dtype == torch.float64
    np.testing.assert_allclose(features.covariance, np.cov(x.double().numpy(), rowvar=False), rtol=0, atol=1e-9)


def test_a_feature_set_needs_two_images():
    with pytest.raises(UserError, match="at least 2 images"):
        FeatureSet.of(torch.ones(1, 3))


@pytest.mark.parametrize("where", ["pooled", "logits"])
def test_features_that_are_not_finite_name_the_image(where):
    pooled, logits = torch.ones(5, 3), torch.ones(5, 3)
    {"pooled": pooled, "logits": logits}[where][3, 1] = math.inf
    with pytest.raises(UserError, match="image 3"):
        FeatureSet.of(pooled, logits)


# Frechet distance


@pytest.mark.parametrize("d", [1, 5, 40])
def test_frechet_is_the_formula_with_scipys_square_root(d):
    one, two = FeatureSet.of(rows(300, d, seed=2)), FeatureSet.of(rows(200, d, seed=3, scale=1.5, shift=0.3))
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
    expected = frechet_distance(FeatureSet.of(x), FeatureSet.of(y))
    one, two = FeatureSet.of(x @ basis.T), FeatureSet.of(y @ basis.T)
    if side != "features":
        two = statistics_only(two)
    if side == "statistics":
        one = statistics_only(one)
    assert frechet_distance(one, two) == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("side", ["features", "statistics"])
def test_one_singular_and_one_regular_covariance_agree_with_scipy(side):
    one, two = FeatureSet.of(rows(10, 20, seed=7)), FeatureSet.of(rows(400, 20, seed=8))
    square = scipy.linalg.sqrtm(two.covariance.numpy())
    eigenvalues = np.linalg.eigvalsh(square @ one.covariance.numpy() @ square)[-9:]  # rank 9: 10 centred images
    if side == "statistics":  # eigenvalues that are zero but for rounding must not count: their roots would
        one = statistics_only(one)
    assert float(trace_sqrt_product(one, two)) == pytest.approx(np.sqrt(eigenvalues).sum(), rel=1e-10)


def test_statistics_of_other_images_are_never_replaced_by_the_features_beside_them():
    """ADM's file: statistics of one set, images of another. Both of 10 images here, fewer than features."""
    other, shown = FeatureSet.of(rows(10, 20, seed=9)), rows(10, 20, seed=10)
    reference = FeatureSet(10, other.mean, other.covariance, pooled=shown, separate_statistics=True)
    samples = FeatureSet.of(rows(15, 20, seed=11))
    assert frechet_distance(samples, reference) == pytest.approx(frechet_distance(samples, other), rel=1e-6)


@pytest.mark.parametrize("n", [15, 300])
def test_frechet_is_symmetric_and_zero_for_equal_sets(n):
    one, two = FeatureSet.of(rows(n, 20, seed=12)), FeatureSet.of(rows(n, 20, seed=13))
    assert frechet_distance(one, two) == pytest.approx(frechet_distance(two, one), rel=1e-11)
    assert abs(frechet_distance(one, one)) < 1e-11 * float(one.covariance.trace())
    assert Frechet().compute(one, one)["FD(features)"] >= 0


def test_moving_a_set_moves_it_by_the_square_of_the_step():
    x = rows(100, 8, seed=14)
    step = torch.arange(8).double()
    assert frechet_distance(FeatureSet.of(x), FeatureSet.of(x + step)) == pytest.approx(140.0, rel=1e-10)


def test_frechet_agrees_with_torch_fidelity():
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    x, y = rows(500, 30, seed=15).float(), rows(400, 30, seed=16, shift=0.1).float()
    theirs = fid_statistics_to_metric(*(fid_features_to_statistics(f.double()) for f in (x, y)), verbose=False)
    ours = frechet_distance(FeatureSet.of(x), FeatureSet.of(y))
    assert ours == pytest.approx(theirs["frechet_inception_distance"], rel=1e-9)


def test_frechet_refuses_two_networks():
    with pytest.raises(UserError, match="found 3 and 4"):
        frechet_distance(FeatureSet.of(rows(9, 3, seed=0)), FeatureSet.of(rows(9, 4, seed=0)))


# Inception Score


def naive_inception_score(logits: np.ndarray, chunk: int) -> tuple[float, float]:
    scores = []
    for start in range(0, len(logits), chunk):
        part = logits[start : start + chunk]
        p = [[math.exp(v) / sum(math.exp(u) for u in row) for v in row] for row in part.tolist()]
        marginal = [sum(row[c] for row in p) / len(p) for c in range(len(p[0]))]
        kl = [sum(a * math.log(a / b) for a, b in zip(row, marginal, strict=True)) for row in p]
        scores.append(math.exp(sum(kl) / len(kl)))
    mean = sum(scores) / len(scores)
    return mean, math.sqrt(sum((s - mean) ** 2 for s in scores) / len(scores))


@pytest.mark.parametrize("chunk", [10, 17, 60, 100])
def test_inception_score_is_the_naive_loop(chunk):
    logits = np.random.default_rng(20).standard_normal((60, 7)) * 3
    assert inception_score(torch.from_numpy(logits), chunk) == pytest.approx(naive_inception_score(logits, chunk))


def test_inception_score_bounds():
    certain = 1000.0 * torch.eye(8).repeat(5, 1)
    assert inception_score(certain) == pytest.approx((8.0, 0.0))
    assert inception_score(torch.zeros(40, 8)) == pytest.approx((1.0, 0.0))


def test_samples_sorted_by_class_score_one_in_chunks_of_a_class():
    """Chunks are taken in file order, as ADM does; a shuffling implementation would give about 8 here."""
    certain = 1000.0 * torch.eye(8).repeat_interleave(5, 0)
    assert inception_score(certain, chunk=5)[0] == pytest.approx(1.0)


def test_inception_score_agrees_with_torch_fidelity_on_equal_unshuffled_splits():
    from torch_fidelity.metric_isc import isc_features_to_metric

    logits = rows(500, 10, seed=21, scale=2).float()
    theirs = isc_features_to_metric(logits, splits=5, shuffle=False)
    mean, std = inception_score(logits, chunk=100)
    assert mean == pytest.approx(theirs["inception_score_mean"], rel=1e-12)
    assert std == pytest.approx(theirs["inception_score_std"], rel=1e-9)


def test_inception_score_without_logits_is_refused():
    features = FeatureSet.of(rows(9, 3, seed=0))
    with pytest.raises(UserError, match="no logits"):
        InceptionScore().compute(features, features)


# Precision and recall


def naive_precision_recall(samples: np.ndarray, reference: np.ndarray, k: int) -> tuple[float, float]:
    """Differences, squares, full sorts: nothing shared with the blocked products."""

    def squared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return ((a[:, None, :] - b[None, :, :]) ** 2).sum(-1)

    def covered(points: np.ndarray, centres: np.ndarray) -> float:
        radius = np.sort(squared(centres, centres), axis=1)[:, k]
        return float((squared(points, centres) <= radius).any(1).mean())

    return covered(samples, reference), covered(reference, samples)


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("block", [1, 7, 64, 2048])
def test_precision_recall_is_the_naive_oracle(k, block):
    samples, reference = rows(60, 5, seed=30), rows(45, 5, seed=31, scale=0.9, shift=0.5)
    expected = naive_precision_recall(samples.numpy(), reference.numpy(), k)
    assert precision_recall(samples, reference, k, block) == expected
    assert set(expected) - {0.0, 1.0}, "figures at their bounds would compare nothing"


points = st.lists(st.tuples(*[st.integers(-2, 2)] * 2), min_size=5, max_size=12)


@settings(max_examples=80, deadline=None)
@given(samples=points, reference=points, k=st.integers(1, 4), block=st.integers(1, 5))
def test_ties_and_copies_on_a_lattice_are_exact(samples, reference, k, block):
    """Whole coordinates make equal distances common: a point on a sphere is inside, copies are neighbours."""
    x, y = np.array(samples, dtype=np.float64), np.array(reference, dtype=np.float64)
    found = precision_recall(torch.from_numpy(x), torch.from_numpy(y), k, block)
    assert found == naive_precision_recall(x, y, k)


def test_the_radius_reaches_the_kth_neighbour_besides_the_point_itself():
    line = torch.tensor([[0.0], [1.0], [3.0], [7.0], [20.0]])
    assert radii(line, k=3).tolist() == [49.0, 36.0, 16.0, 49.0, 361.0]


def test_copies_are_at_distance_zero_however_large_the_features():
    x = rows(50, 200, seed=32, scale=100, shift=1000).float()
    assert (squared_distances(x, x.clone()).diagonal() == 0).all()
    copies = x[:1].repeat(6, 1)  # radius zero: only exact copies are inside
    assert precision_recall(copies, copies.clone()) == (1.0, 1.0)
    assert precision_recall(copies, x) == (1.0, 1 / 50)


def test_precision_and_recall_swap_with_the_sets():
    x, y = rows(60, 5, seed=33), rows(45, 5, seed=34, scale=0.7)
    assert precision_recall(x, y) == precision_recall(y, x)[::-1]


def test_precision_recall_agrees_with_torch_fidelity():
    from torch_fidelity.metric_prc import prc_features_to_metric

    x, y = rows(300, 16, seed=35).float(), rows(250, 16, seed=36, scale=0.8).float()
    theirs = prc_features_to_metric(x, y, prc_neighborhood=3, prc_batch_size=100, save_cpu_ram=False, verbose=False)
    ours = PrecisionRecall().compute(FeatureSet.of(x), FeatureSet.of(y))
    assert ours == pytest.approx({key: theirs[key] for key in ("precision", "recall")}, abs=1e-6)


def test_precision_recall_refuses_k_images_or_fewer():
    with pytest.raises(UserError, match=r"more than k = 3 images in reference, found 3"):
        precision_recall(rows(9, 4, seed=0), rows(3, 4, seed=0))


def test_precision_recall_needs_the_images_of_the_reference():
    features = FeatureSet.of(rows(9, 3, seed=0))
    with pytest.raises(UserError, match="only statistics"):
        PrecisionRecall().compute(features, statistics_only(features))


@pytest.mark.parametrize("options", [{"k": 0}, {"block": 0}])
def test_precision_recall_refuses_nonsense_options(options):
    with pytest.raises(UserError, match="wanted at least 1"):
        PrecisionRecall(**options)


# What every metric keeps, those still to be written included


@pytest.mark.parametrize("name", registry.names("metrics"))
def test_every_metric_gives_finite_named_figures_and_calls_no_other_network_fid(name):
    metric = registry.find("metrics", name)()
    x, y = rows(80, 6, seed=40).float(), rows(70, 6, seed=41).float()
    other = metric.compute(FeatureSet.of(x, x, "mine"), FeatureSet.of(y, y, "mine"))
    real = metric.compute(FeatureSet.of(x, x, "inception-2015", True), FeatureSet.of(y, y, "inception-2015", True))
    assert other
    assert all(isinstance(v, float) and math.isfinite(v) for v in other.values())
    assert list(other.values()) == pytest.approx(list(real.values()))
    assert not any("FID" in key or key == "IS" for key in other)
    assert not any("(" in key for key in real)
