"""What the student keeps, read as what the teacher had: against least squares by NumPy."""

import numpy as np
import torch

from dit_shd.distillation.initialisation import regression
from dit_shd.distillation.initialisation.regression import RegressionMoments


def test_a_reading_is_the_ridge_regression():
    r = np.random.default_rng(0)
    z = r.normal(size=(50, 3)) + 2
    x = z @ r.normal(size=(3, 5)) + r.normal(size=(50, 5))
    start = r.normal(size=(5, 3))
    moments = RegressionMoments()
    for part in (slice(0, 1), slice(1, 20), slice(20, 50)):
        moments.add(torch.from_numpy(z[part])[None], torch.from_numpy(x[part])[None])
    found = moments.regression(torch.from_numpy(start))
    centred, rest = z - z.mean(0), (x - z @ start.T) - (x - z @ start.T).mean(0)
    ridge = max(regression.RIDGE, regression.FEW * 3 / 50)
    penalty = np.sqrt(50 * ridge * centred.var(0).mean()) * np.eye(3)
    change, *_ = np.linalg.lstsq(np.concatenate([centred, penalty]), np.concatenate([rest, np.zeros((3, 5))]))
    np.testing.assert_allclose(found.matrix.numpy(), start + change.T, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.offset.numpy(), x.mean(0) - found.matrix.numpy() @ z.mean(0), rtol=1e-4, atol=1e-5)
    constant = RegressionMoments()  # as the condition of one image, in every token; with a channel that varies
    steady = torch.full((64, 3), 7.3) + torch.tensor([0.0, 1e-3, 0.0]) * torch.randn(64, 1)
    constant.add(torch.cat([steady, torch.randn(64, 1)], 1), torch.randn(64, 5))
    assert (
        int((constant.covariance().diagonal() > 0).sum()) == 1
        and torch.linalg.eigvalsh(constant.covariance()).min() >= 0
    )
    reading = constant.regression(torch.from_numpy(np.pad(start, ((0, 0), (0, 1)))))
    assert reading.matrix.abs().max() < 10 and reading.offset.abs().max() < 100
    nothing = RegressionMoments().regression(torch.from_numpy(start))
    assert torch.equal(nothing.matrix, torch.from_numpy(start)) and not nothing.offset.any()


def test_what_varies_little_beside_its_mean_is_read_and_what_varies_by_rounding_is_not():
    draw = torch.Generator().manual_seed(0)
    varying, steady, start = torch.randn(2000, 1, generator=draw), torch.full((2000, 3), 7.3), torch.ones(2, 4)
    little = RegressionMoments()
    little.add(torch.cat([100 + varying, steady], 1), torch.cat([5 * varying, varying], 1))
    found = little.regression(start.double())
    torch.testing.assert_close(found.matrix[:, 0], torch.tensor([5.0, 1.0]).double(), rtol=0.05, atol=0.05)
    torch.testing.assert_close(found.matrix[:, 1:], start[:, 1:].double())
    constant = RegressionMoments()
    constant.add(steady, torch.cat([varying, varying], 1))
    assert torch.equal(constant.regression(start[:, 1:].double()).matrix, start[:, 1:].double())


def test_as_many_rows_as_channels_are_not_fitted_to_the_last_digit():
    """Noise beside what is kept: with 64 rows of 64 channels a fit of it was worse than none."""
    draw = torch.Generator().manual_seed(0)
    z, noise, start = torch.randn(64, 64, generator=draw), torch.randn(64, 96, generator=draw), torch.eye(96)[:, :64]
    moments = RegressionMoments()
    moments.add(z, z @ start.T + noise)
    other = torch.randn(500, 64, generator=draw).double()
    fitted = moments.regression(start.double())
    assert ((other @ fitted.matrix.T + fitted.offset - other @ start.double().T) ** 2).mean() < 1


def test_a_regression_without_an_offset_goes_through_zero():
    draw = torch.Generator().manual_seed(0)
    z = torch.randn(500, 3, generator=draw) + 2
    x = z @ torch.randn(3, 4, generator=draw) + 5
    moments = RegressionMoments()
    moments.add(z, x)
    found = moments.regression(torch.zeros(4, 3, dtype=torch.float64), offset=False)
    want = torch.linalg.lstsq(z.double(), x.double()).solution.T
    torch.testing.assert_close(found.matrix, want, rtol=0.01, atol=0.02)
    assert not found.offset.any()
