"""Figures of arrays in memory."""

import numpy as np
import pytest
import torch
from evaluating import pictures, run, sorted_digits

from dit_shd.core.errors import UserError
from dit_shd.data.image_sets import ArrayImages
from dit_shd.evaluation.extraction import extract_features
from dit_shd.evaluation.features.digits import DigitsFeatures
from dit_shd.evaluation.scoring import score


def test_score_gives_the_same_figures_and_takes_a_prepared_reference(files):
    samples, reference = pictures(40, seed=1), pictures(50, seed=2)
    record = run(files)
    network = DigitsFeatures()
    direct = score(samples, reference, network)
    prepared = extract_features(network, ArrayImages(reference, "reference"))
    assert direct == pytest.approx(record["figures"], rel=1e-9)
    assert score(torch.from_numpy(samples), prepared, network) == pytest.approx(direct, rel=1e-9)
    assert list(score(samples, prepared, network, ["frechet"])) == ["FD(digits)"]


def test_scores_of_sorted_samples_are_warned_of_in_python(caplog):
    images, labels = sorted_digits()
    many, network = np.concatenate([images] * 11), DigitsFeatures()
    order = np.argsort(np.concatenate([labels] * 11), kind="stable")
    score(many[order], images, network, ["inception_score"])
    assert "because the samples are sorted" in caplog.text


def test_score_refuses_features_of_another_network():
    network = DigitsFeatures()
    prepared = extract_features(network, ArrayImages(pictures(9, 0), "x"))
    network.title = "other"
    with pytest.raises(UserError, match="extract both with one network"):
        score(pictures(9, 0), prepared, network)
