"""Laws and independent oracles of the metrics. All data are drawn here from fixed seeds."""

import math
import re
from fractions import Fraction

import numpy as np
import pytest
import scipy.linalg
import torch
from evaluating import rows

from dit_shd.core.errors import UserError
from dit_shd.evaluation.feature_set import FeatureSet, Moments, Statistics
from dit_shd.evaluation.metrics import METRICS
from dit_shd.evaluation.metrics.frechet import Frechet, frechet_distance, trace_sqrt_product
from dit_shd.evaluation.metrics.inception_score import InceptionScore, inception_score
from dit_shd.evaluation.metrics.kid import KID, mmd2
from dit_shd.evaluation.metrics.spatial_frechet import SpatialFrechet


def gaussian(mean: list[float], variances: list[float]) -> Statistics:
    return Statistics(0, torch.tensor(mean).double(), torch.diag(torch.tensor(variances).double()))


def statistics_only(statistics: Statistics) -> Statistics:
    return Statistics(statistics.n, statistics.mean, statistics.covariance)


# Statistics


@pytest.mark.parametrize("shift", [0.0, 1e6])
@pytest.mark.parametrize("piece", [1, 7, 1000])
@pytest.mark.parametrize("block", [16, 4096])
def test_moments_of_pieces_are_numpys_even_far_from_zero(piece, block, shift):
    x = rows(100, 6, seed=0, shift=shift)
    moments = Moments(block)
    for part in x.split(piece):
        moments.add(part)
    found = moments.statistics()
    assert found.n == 100
    # The data themselves are rounded to eps * shift; the tolerance is that, not more.
    tolerance = 1e-12 if shift == 0 else 1e-8
    np.testing.assert_allclose(found.mean, x.numpy().mean(0), rtol=1e-13, atol=1e-12)
    np.testing.assert_allclose(found.covariance, np.cov(x.numpy(), rowvar=False), rtol=0, atol=tolerance)


def test_moments_do_not_depend_on_the_pieces_to_the_last_bit():
    x = rows(100, 6, seed=0).float()
    one, other = Moments(block=16), Moments(block=16)
    one.add(x)
    for part in x.split(9):
        other.add(part)
    assert torch.equal(one.statistics().covariance, other.statistics().covariance)


def test_moments_of_float32_rows_are_summed_in_float64():
    x = rows(3000, 4, seed=1, shift=1000).float()
    found = Statistics.of(x)
    assert found.mean.dtype == found.covariance.dtype == torch.float64
    np.testing.assert_allclose(found.covariance, np.cov(x.double().numpy(), rowvar=False), rtol=0, atol=1e-9)


@pytest.mark.parametrize("n", [5, 8, 9])
def test_rows_are_kept_where_they_are_few(n):
    x = rows(n, 8, seed=2)
    found = Statistics.of(x).rows
    assert (found is not None) == (n <= 8)
    assert found is None or torch.equal(found, x)


def test_a_feature_set_needs_two_images():
    with pytest.raises(UserError, match="at least 2 images"):
        FeatureSet.of(torch.ones(1, 3))


def test_a_feature_set_moves_as_a_whole():
    x = rows(5, 6, seed=0)
    moved = FeatureSet.of(x, x, spatial=x).to(torch.device("meta"))
    parts = (moved.pooled, moved.logits, moved.spatial_rows)
    statistics = [part for s in (moved.statistics, moved.spatial) if s for part in (s.mean, s.covariance, s.rows)]
    assert len(statistics) == 6
    assert all(part is not None and part.is_meta for part in (*parts, *statistics))


@pytest.mark.parametrize("where", ["pooled", "logits", "spatial"])
def test_features_that_are_not_finite_name_the_image(where):
    features = {name: torch.ones(5, 3) for name in ("pooled", "logits", "spatial")}
    features[where][3, 1] = math.inf
    with pytest.raises(UserError, match="image 3"):
        FeatureSet.of(**features)


# Frechet distance


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


def test_sfid_is_the_frechet_distance_of_the_spatial_features():
    x, y = (FeatureSet.of(rows(60, 5, seed=s), spatial=rows(60, 7, seed=s + 1), is_fid=True) for s in (17, 27))
    expected = frechet_distance(Statistics.of(rows(60, 7, seed=18)), Statistics.of(rows(60, 7, seed=28)))
    assert SpatialFrechet().compute(x, y) == {"sFID": pytest.approx(expected, rel=1e-12)}
    assert expected > 0.1


def test_sfid_needs_both_sides():
    x, y = FeatureSet.of(rows(9, 3, seed=0), spatial=rows(9, 4, seed=1)), FeatureSet.of(rows(9, 3, seed=0))
    with pytest.raises(UserError, match="found none in the reference"):
        SpatialFrechet().compute(x, y)


# Kernel Inception Distance


def test_kid_is_torch_fidelitys_to_the_last_digits():
    from torch_fidelity.metric_kid import kid_features_to_metric

    x, y = rows(300, 12, seed=50), rows(260, 12, seed=51, scale=1.2, shift=0.1)
    theirs = kid_features_to_metric(x, y, kid_subset_size=100, verbose=False)
    ours = KID(subset_size=100).compute(FeatureSet.of(x), FeatureSet.of(y))
    assert ours["KID(features)"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-10)
    assert ours["KID(features) std"] == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-10)
    assert ours["KID(features)"] > 10 * abs(ours["KID(features) std"]) / 100**0.5


def test_mmd_is_the_naive_double_sum():
    x, y = rows(7, 3, seed=52).numpy(), rows(5, 3, seed=53).numpy()

    def kernel(a, b):
        return (sum(p * q for p, q in zip(a, b, strict=True)) / 3 + 1) ** 3

    def within(z):
        n = len(z)
        return sum(kernel(z[i], z[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))

    between = sum(kernel(a, b) for a in x for b in y) / (7 * 5)
    assert mmd2(torch.from_numpy(x), torch.from_numpy(y)) == pytest.approx(within(x) + within(y) - 2 * between)


@pytest.mark.parametrize("outlier", [0.0, 1e10])
@pytest.mark.parametrize(("scale", "offset"), [(1, 0), (1, 30), (1, 1e6), (1e-20, 0), (1e15, 0), (1e-3, -1000)])
def test_mmd_is_that_of_exact_fractions_however_far_from_zero(scale, offset, outlier):
    x, y = (rows(n, 3, seed=54 + n).float() * scale + offset for n in (7, 5))
    x[3] += outlier * scale
    exact = [[[Fraction(v) for v in row] for row in z.tolist()] for z in (x, y)]

    def mean(a, b, skip):
        pairs = [(p, q) for i, p in enumerate(a) for j, q in enumerate(b) if not (skip and i == j)]
        return sum((sum(s * t for s, t in zip(p, q, strict=True)) / 3 + 1) ** 3 for p, q in pairs) / len(pairs)

    one, two = exact
    wanted = float(mean(one, one, True) + mean(two, two, True) - 2 * mean(one, two, False))
    assert mmd2(x, y) == pytest.approx(wanted, rel=1e-9)


def test_kid_is_unbiased_where_fd_is_not():
    """Sets of one distribution: KID is zero on average whatever the size, FD is far from it for small sets."""
    generator = np.random.default_rng(56)
    kids, distances = [], []
    for _ in range(200):
        x, y = (torch.from_numpy(generator.standard_normal((20, 4)) / 2) for _ in range(2))
        kids.append(mmd2(x, y))
        distances.append(frechet_distance(Statistics.of(x), Statistics.of(y)))
    assert abs(np.mean(kids)) < 2 * np.std(kids) / 200**0.5
    assert np.mean(distances) > 20 * np.std(distances) / 200**0.5


def test_kid_of_few_images_takes_them_all_and_says_so():
    x, y = FeatureSet.of(rows(30, 4, seed=54)), FeatureSet.of(rows(20, 4, seed=55))
    assert "subsets of 20 images" in KID().notes(x, y)[0]
    assert KID(subset_size=20).notes(x, y) == []
    assert KID().compute(x, y) == KID(subset_size=20).compute(x, y)


@pytest.mark.parametrize("options", [{"subsets": 0}, {"subset_size": 1}, {"seed": -1}])
def test_kid_refuses_nonsense_options(options):
    with pytest.raises(UserError, match="wanted at least"):
        KID(**options)


# Inception Score


def naive_scores(logits: np.ndarray, chunk: int) -> list[float]:
    """Of each chunk, as ADM's evaluator has them."""
    scores = []
    for start in range(0, len(logits), chunk):
        part = logits[start : start + chunk]
        p = [[math.exp(v) / sum(math.exp(u) for u in row) for v in row] for row in part.tolist()]
        marginal = [sum(row[c] for row in p) / len(p) for c in range(len(p[0]))]
        kl = [sum(a * math.log(a / b) for a, b in zip(row, marginal, strict=True)) for row in p]
        scores.append(math.exp(sum(kl) / len(kl)))
    return scores


@pytest.mark.parametrize("chunk", [10, 20, 60, 100])
def test_inception_score_of_equal_chunks_is_the_mean_of_the_naive_loop(chunk):
    logits = np.random.default_rng(20).standard_normal((60, 7)) * 3
    scores = naive_scores(logits, chunk)
    expected = (np.mean(scores), np.std(scores))
    assert inception_score(torch.from_numpy(logits), chunk) == pytest.approx(expected, rel=1e-12)
    assert not [note for note in InceptionScore(chunk).notes(classified(logits), classified(logits)) if "last" in note]


@pytest.mark.parametrize("n", [41, 57, 60, 79])
def test_every_image_counts_alike_in_unequal_chunks_and_adms_mean_is_told(n):
    logits = np.random.default_rng(21).standard_normal((n, 7)) * 3
    scores = naive_scores(logits, 20)
    of_each_image = [scores[i // 20] for i in range(n)]
    figures = InceptionScore(20).compute(classified(logits), classified(logits))
    assert list(figures.values()) == pytest.approx([np.mean(of_each_image), np.std(of_each_image)], rel=1e-6)
    told = " ".join(InceptionScore(20).notes(classified(logits), classified(logits)))
    assert (f"the last chunk holds {n % 20} of 20 images" in told) == (n % 20 > 0)
    assert (f"would give {np.mean(scores):.3f}" in told) == (n % 20 > 0)


def classified(logits: np.ndarray | torch.Tensor) -> FeatureSet:
    given = torch.as_tensor(logits).float()
    return FeatureSet.of(given, given)


def of_classes(labels: np.ndarray, classes: int, seed: int = 0) -> torch.Tensor:
    """Logits [n, classes] of a network that is mostly right."""
    noise = torch.from_numpy(np.random.default_rng(seed).standard_normal((len(labels), classes)))
    return noise + 6.0 * torch.nn.functional.one_hot(torch.from_numpy(labels), classes)


ORDERS = {
    "rising": lambda n, k: np.arange(n) * k // n,
    "falling": lambda n, k: k - 1 - np.arange(n) * k // n,
    "blocks": lambda n, k: (np.arange(n) * k // n + k // 2) % k,
    "one out of place": lambda n, k: np.append(np.arange(n - 1) * k // n, 0),
    "two sorted files": lambda n, k: np.arange(n) % (n // 2) * k // (n // 2),
    "sorted files, taken in turn": lambda n, k: (np.arange(n) % 4 * (n // 4) + np.arange(n) // 4) % (n // 2) * k // n,
    "every chunk its classes": lambda n, k: np.arange(n) * 4 // n * (k // 4) + np.arange(n) % (k // 4),
}


@pytest.mark.parametrize("order", ORDERS)
def test_sorted_samples_are_told_from_their_figures_and_random_order_from_a_shuffled_copy(order):
    """The oracle shuffles copies itself, by another generator."""
    n, k, metric = 800, 40, InceptionScore(200)
    labels, rng = ORDERS[order](n, k), np.random.default_rng(5)
    logits = of_classes(labels, k)
    (found,) = metric.reasons_against(classified(logits))
    copies = [inception_score(logits[rng.permutation(n)], 200)[0] for _ in range(20)]
    there, shuffled = (float(text) for text in re.findall(r"\d+\.\d+", found))
    assert there == pytest.approx(inception_score(logits, 200)[0], abs=1e-3)
    assert shuffled == pytest.approx(np.mean(copies), abs=3 * np.std(copies))
    assert "the samples are sorted" in found
    assert metric.reasons_against(classified(logits[rng.permutation(n)])) == []


@pytest.mark.parametrize(("n", "chunk"), [(30, 10), (101, 100), (150, 100), (400, 100), (1001, 500)])
def test_random_order_is_never_called_sorted(n, chunk):
    rng = np.random.default_rng(n)
    for seed in range(25):
        logits = of_classes(rng.integers(10, size=n), 10, seed)
        metric = InceptionScore(chunk)
        assert metric.reasons_against(classified(logits)) == []
        assert not [note for note in metric.notes(classified(logits), classified(logits)) if "evenly" in note]


def test_one_chunk_has_no_order_and_classes_in_turn_are_noted_only():
    labels = np.arange(4000) % 40
    assert InceptionScore(4000).reasons_against(classified(of_classes(np.sort(labels), 40))) == []
    in_turn = classified(of_classes(labels, 40))
    assert InceptionScore(200).reasons_against(in_turn) == []
    (note,) = InceptionScore(200).notes(in_turn, in_turn)
    assert "more evenly by class than in random order" in note


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


# What every metric keeps, those still to be written included


@pytest.mark.parametrize("name", METRICS.names())
def test_every_metric_gives_finite_named_figures_and_calls_no_other_network_fid(name):
    metric = METRICS.find(name)()
    x, y = rows(80, 6, seed=40).float(), rows(70, 6, seed=41).float()

    def figures(title: str, is_fid: bool) -> dict[str, float]:
        return metric.compute(FeatureSet.of(x, x, title, is_fid, x), FeatureSet.of(y, y, title, is_fid, y))

    other, real = figures("mine", False), figures("inception-2015", True)
    assert other
    assert all(isinstance(v, float) and math.isfinite(v) for v in other.values())
    assert list(other.values()) == pytest.approx(list(real.values()))
    assert not any("FID" in key or key in ("IS", "KID") for key in other)
    assert not any("(" in key for key in real)
