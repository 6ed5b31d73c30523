"""References: statistics files written and read, and what may not be compared."""

from pathlib import Path

import numpy as np
import pytest
from evaluation import pictures, refused, run

from dit_shd.evaluator import extract_features, score
from dit_shd.features.digits import Digits
from dit_shd.image_sets import ArrayImages

# References of statistics


def write_statistics(path: Path, images: np.ndarray, **extra) -> None:
    features = extract_features(Digits(), ArrayImages(images, "x"))
    known = features.statistics
    np.savez(path, mu=known.mean.numpy(), sigma=known.covariance.numpy(), n=known.n, **extra)


def test_statistics_with_the_networks_hash_give_the_distance_of_the_images(files):
    images = pictures(200, seed=4)
    np.savez(files["reference"], images)
    expected = run(files)["figures"]["FD(digits)"]
    write_statistics(files["reference"], images, network_sha256=Digits().sha256)
    record = run(files, force=True)
    assert record["figures"]["FD(digits)"] == pytest.approx(expected, rel=1e-6)
    assert "precision" not in record["figures"]
    assert any("precision_recall left out" in note for note in record["notes"])
    assert record["reference"]["statistics"]["n"] == 200
    assert "only statistics" in refused(files, metrics=["precision_recall"], force=True)


def test_statistics_win_over_the_images_beside_them_as_in_adms_file(files):
    shown, behind = pictures(50, seed=2), pictures(200, seed=4)
    alone = run(files)["figures"]
    write_statistics(files["reference"], behind, network_sha256=Digits().sha256, arr_0=shown)
    both = run(files, force=True)["figures"]
    assert both["precision"] == alone["precision"]
    assert both["recall"] == alone["recall"]
    assert both["FD(digits)"] == pytest.approx(
        score(pictures(40, 1), behind, Digits(), ["frechet"])["FD(digits)"], rel=1e-6
    )
    assert both["FD(digits)"] != pytest.approx(alone["FD(digits)"], rel=1e-3)


@pytest.mark.parametrize("extra", [{}, {"network_sha256": "0" * 64}])
def test_statistics_of_another_or_an_unnamed_network_are_refused(files, extra):
    write_statistics(files["reference"], pictures(60, seed=4), **extra)
    assert "wanted statistics of feature network digits" in refused(files)


@pytest.mark.parametrize(
    ("mu", "sigma", "message"),
    [
        (np.zeros(64), -np.eye(64), "negative eigenvalues"),
        (np.zeros(64), np.diag(np.r_[np.ones(63), -1e-3]), "negative eigenvalues"),
        (np.zeros(64), np.triu(np.ones((64, 64))), "not symmetric"),
        (np.full(64, 1e200), np.eye(64), "found a value of 1e+200"),
        (np.zeros(64), 1e200 * np.eye(64), "found a value of 1e+200"),
        (np.zeros(64), np.eye(63), "wanted statistics"),
        (np.zeros((2, 64)), np.eye(64), "wanted statistics"),
        (np.zeros(64, dtype=int), np.eye(64), "wanted statistics"),
        (np.full(64, np.nan), np.eye(64), "finite"),
    ],
)
def test_broken_statistics_are_refused(files, mu, sigma, message):
    np.savez(files["reference"], mu=mu, sigma=sigma, network_sha256=Digits().sha256)
    assert message in refused(files)
