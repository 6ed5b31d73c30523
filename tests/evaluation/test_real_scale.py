"""What a figure is between real images: as many as there are samples against the others."""

from dataclasses import replace

import numpy as np
import pytest
from evaluating import rows

from dit_shd.data.image_sets import spread
from dit_shd.evaluation.feature_set import FeatureSet, Statistics
from dit_shd.evaluation.metrics.frechet import frechet_distance
from dit_shd.evaluation.real_scale import real_scale


def test_the_scale_is_as_many_real_images_against_the_others():
    y, x = rows(60, 4, seed=0), rows(20, 4, seed=1)
    some = np.isin(np.arange(60), spread(60, 20))
    want = frechet_distance(Statistics.of(y[some]), Statistics.of(y[~some]))
    found = real_scale("FD(features)", FeatureSet.of(x), FeatureSet.of(y))
    assert found == {"n": 20, "figures": {"FD(features)": pytest.approx(want)}}


def test_the_scale_of_many_samples_is_of_two_halves():
    y = FeatureSet.of(rows(60, 4, seed=0))
    assert real_scale("FD(features)", y, y)["n"] == 30


def test_half_of_a_part_of_the_images_is_no_scale_for_statistics_of_all():
    x, y = (FeatureSet.of(rows(60, 4, seed=seed)) for seed in (0, 1))
    more = replace(y, statistics=Statistics.of(rows(120, 4, seed=2)))
    assert real_scale("FD(features)", x, y) and real_scale("FD(features)", x, more) is None
