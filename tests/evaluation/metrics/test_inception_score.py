"""The Inception Score against a naive loop and torch-fidelity, and the order of samples."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from evaluating import rows

from dit_shd.core.errors import UserError
from dit_shd.evaluation.feature_set import FeatureSet
from dit_shd.evaluation.metrics.inception_score import InceptionScore, inception_score


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


def test_one_chunk_has_no_deviation():
    features = replace(FeatureSet.of(rows(9, 3, seed=0)), logits=rows(9, 4, seed=1))
    assert list(InceptionScore(chunk=9).compute(features, features)) == ["IS(features)"]
    assert InceptionScore(chunk=8).compute(features, features)["IS(features) std"] > 0


def test_inception_score_without_logits_is_refused():
    features = FeatureSet.of(rows(9, 3, seed=0))
    with pytest.raises(UserError, match="no logits"):
        InceptionScore().compute(features, features)


def test_chunks_are_those_of_adms_evaluator():
    assert InceptionScore().chunk == 5000
