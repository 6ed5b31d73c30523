"""Mean and covariance of rows in pieces, and sets of features."""

import math

import numpy as np
import pytest
import torch
from evaluating import rows

from dit_shd.core.errors import UserError
from dit_shd.evaluation.feature_set import FeatureSet, Moments, Statistics


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
