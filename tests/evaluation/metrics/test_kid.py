"""KID against torch-fidelity, double sums and exact fractions."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from evaluating import pictures, rows

from dit_shd.core.errors import UserError
from dit_shd.data.image_sets import ArrayImages
from dit_shd.evaluation.extraction import _are_balanced, extract_features
from dit_shd.evaluation.feature_set import FeatureSet, Statistics
from dit_shd.evaluation.features import Features
from dit_shd.evaluation.features.digits import DigitsFeatures
from dit_shd.evaluation.metrics.frechet import frechet_distance
from dit_shd.evaluation.metrics.kid import KID, mmd2


@pytest.mark.parametrize("seed", [2020, 5])
def test_kid_is_torch_fidelitys_to_the_last_digits(seed):
    from torch_fidelity.metric_kid import kid_features_to_metric

    x, y = rows(300, 12, seed=50), rows(260, 12, seed=51, scale=1.2, shift=0.1)
    theirs = kid_features_to_metric(x, y, kid_subset_size=100, rng_seed=seed, verbose=False)
    ours = KID(subset_size=100, seed=seed).compute(FeatureSet.of(x), FeatureSet.of(y))
    assert ours["KID(features)"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-10)
    assert ours["KID(features) std"] == pytest.approx(theirs["kernel_inception_distance_std"], rel=1e-10)
    assert ours["KID(features)"] > 10 * abs(ours["KID(features) std"]) / 100**0.5


def test_equal_subsets_have_no_deviation():
    x, y = (FeatureSet.of(rows(9, 3, seed=seed)) for seed in (0, 1))
    assert list(KID().compute(x, y)) == list(KID(subsets=1, subset_size=5).compute(x, y)) == ["KID(features)"]
    assert KID(subset_size=8).compute(x, y)["KID(features) std"] > 0


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


def test_balanced_sets_are_no_independent_draws_which_is_said():
    """Two sets of one distribution of ten well separated classes: as many of each class give far less than zero."""
    generator = np.random.default_rng(7)
    centres = generator.standard_normal((10, 8))

    def drawn(labels: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(centres[labels] + generator.standard_normal((len(labels), 8)) / 10)

    equal = np.arange(100) % 10
    balanced = [mmd2(drawn(equal), drawn(equal)) for _ in range(40)]
    random = [mmd2(*(drawn(generator.integers(0, 10, 100)) for _ in range(2))) for _ in range(40)]
    assert np.mean(balanced) < -5 * np.std(balanced) and abs(np.mean(random)) < 3 * np.std(random) / 40**0.5

    class Rows(DigitsFeatures):
        def _forward(self, images: torch.Tensor) -> Features:
            return Features(images.flatten(1).float())

    def features(labels: np.ndarray | None) -> FeatureSet:
        return extract_features(Rows(), ArrayImages(pictures(100, 3), "x", labels))

    said = [
        any("too low" in note for note in KID().notes(features(labels), features(None))) for labels in (equal, None)
    ]
    assert said == [True, False]
    rest = np.arange(103) % 10  # as balanced as 103 can be
    assert extract_features(Rows(), ArrayImages(pictures(103, 3), "x", rest)).balanced
    one_class, uneven = np.zeros(100, np.int64), np.minimum(equal, 5)
    assert not features(one_class).balanced and not features(uneven).balanced
    assert not any("too low" in note for note in KID(subset_size=20).notes(features(equal), features(equal)))


@pytest.mark.parametrize("options", [{"subsets": 0}, {"subset_size": 1}, {"seed": -1}])
def test_kid_refuses_nonsense_options(options):
    with pytest.raises(UserError, match="wanted at least"):
        KID(**options)


def test_one_image_of_each_number_is_no_plan_of_classes():
    """Numbers of prompts stand where labels do."""
    assert not _are_balanced(np.arange(500))
    assert _are_balanced(np.repeat(np.arange(5), 3)) and not _are_balanced(None)


def test_defaults_are_those_of_published_figures():
    from torch_fidelity.defaults import DEFAULTS

    metric = KID()
    assert (metric.subsets, metric.subset_size) == (DEFAULTS["kid_subsets"], DEFAULTS["kid_subset_size"])
    assert metric.seed == DEFAULTS["rng_seed"]
