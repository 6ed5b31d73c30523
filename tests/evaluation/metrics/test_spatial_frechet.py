"""The Frechet distance of spatial features."""

import pytest
from evaluating import rows

from dit_shd.core.errors import UserError
from dit_shd.evaluation.feature_set import FeatureSet, Statistics
from dit_shd.evaluation.metrics.frechet import frechet_distance
from dit_shd.evaluation.metrics.spatial_frechet import SpatialFrechet


def test_sfid_is_the_frechet_distance_of_the_spatial_features():
    x, y = (FeatureSet.of(rows(60, 5, seed=s), spatial=rows(60, 7, seed=s + 1), is_fid=True) for s in (17, 27))
    expected = frechet_distance(Statistics.of(rows(60, 7, seed=18)), Statistics.of(rows(60, 7, seed=28)))
    assert SpatialFrechet().compute(x, y) == {"sFID": pytest.approx(expected, rel=1e-12)}
    assert expected > 0.1


def test_sfid_needs_both_sides():
    x, y = FeatureSet.of(rows(9, 3, seed=0), spatial=rows(9, 4, seed=1)), FeatureSet.of(rows(9, 3, seed=0))
    with pytest.raises(UserError, match="found none in the reference"):
        SpatialFrechet().compute(x, y)
