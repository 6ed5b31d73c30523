"""Precision, recall, density and coverage against naive oracles, ties and torch-fidelity."""

import numpy as np
import pytest
import torch
from evaluating import rows
from hypothesis import given, settings
from hypothesis import strategies as st

from dit_shd.core.errors import UserError
from dit_shd.evaluation.feature_set import FeatureSet
from dit_shd.evaluation.metrics.precision_recall import PrecisionRecall

# Precision and recall


def squared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return ((a[:, None, :] - b[None, :, :]) ** 2).sum(-1)


def naive(samples: np.ndarray, reference: np.ndarray, k: int, density_k: int) -> dict[str, float]:
    """Differences, squares, full sorts, loops: nothing shared with the blocked products."""

    def balls(centres: np.ndarray, neighbours: int) -> np.ndarray:
        return np.sort(squared(centres, centres), axis=1)[:, neighbours]

    def covered(points: np.ndarray, centres: np.ndarray) -> float:
        return float((squared(points, centres) <= balls(centres, k)).any(1).mean())

    inside = squared(samples, reference) <= balls(reference, density_k)
    return {
        "precision": covered(samples, reference),
        "recall": covered(reference, samples),
        "density": sum(float(row.sum()) for row in inside) / (density_k * len(samples)),
        "coverage": float(inside.any(0).mean()),
    }


def ours(samples: torch.Tensor, reference: torch.Tensor, **options: int) -> dict[str, float]:
    return PrecisionRecall(**options).compute(FeatureSet.of(samples), FeatureSet.of(reference))


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("block", [1, 7, 64, 2048])
def test_all_four_are_the_naive_oracle(k, block):
    samples, reference = rows(60, 5, seed=30), rows(45, 5, seed=31, scale=0.9, shift=0.5)
    expected = naive(samples.numpy(), reference.numpy(), k, 6 - k)
    assert ours(samples, reference, k=k, density_k=6 - k, block=block) == pytest.approx(expected, rel=1e-12)
    assert set(expected.values()) - {0.0, 1.0}, "figures at their bounds would compare nothing"


@pytest.mark.parametrize("shift", [0.0, 1e3, 1e6])
@pytest.mark.parametrize("d", [2, 300])
def test_float32_features_give_the_figures_of_float64_wherever_they_lie(d, shift):
    """Far from zero a float32 product would lose every digit of a distance."""
    samples, reference = rows(120, d, 37, shift=shift).float(), rows(110, d, 38, scale=0.9, shift=shift).float()
    expected = naive(samples.double().numpy(), reference.double().numpy(), 3, 5)
    assert ours(samples, reference, block=32) == pytest.approx(expected, rel=1e-12)


points = st.lists(st.tuples(*[st.integers(-2, 2)] * 2), min_size=6, max_size=40)


@settings(max_examples=80, deadline=None)
@given(samples=points, reference=points, k=st.integers(1, 5), block=st.integers(1, 5), scale=st.sampled_from([1, 1e9]))
def test_ties_and_copies_on_a_lattice_are_exact(samples, reference, k, block, scale):
    """Whole coordinates make equal distances common: a point on a sphere is inside, copies are neighbours."""
    x, y = np.array(samples, dtype=np.float64) * scale, np.array(reference, dtype=np.float64) * scale
    found = ours(torch.from_numpy(x), torch.from_numpy(y), k=k, density_k=2, block=block)
    assert found == pytest.approx(naive(x, y, k, 2), rel=1e-12)


def test_points_no_float32_can_tell_apart_are_told_apart():
    """More equal-looking neighbours than are kept beyond the wanted ones: whole rows are computed again."""
    generator = np.random.default_rng(39)
    x, y = (1 + 1e-9 * generator.standard_normal((60, 4)) for _ in range(2))
    x[0], y[0] = 100.0, -100.0
    found = ours(torch.from_numpy(x), torch.from_numpy(y), block=16)
    assert found == pytest.approx(naive(x, y, 3, 5), rel=1e-12)


@pytest.mark.parametrize("d", [64, 300])
def test_the_mirror_image_of_a_nearest_neighbour_is_on_the_sphere(d):
    """And so inside: whole numbers, whose distances are exact, but not their products in float32."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randint(-200, 200, (40, d), generator=generator).float()
    neighbours = centres + torch.randint(-50, 50, (40, d), generator=generator)
    found = ours(2 * centres - neighbours, torch.cat([centres, neighbours]), k=1, density_k=1)
    assert found == {"precision": 1.0, "recall": 1.0, "density": 1.0, "coverage": 0.5}


def test_copies_are_at_distance_zero_however_large_the_features():
    x = rows(50, 200, seed=32, scale=100, shift=1000).float()
    copies = x[:1].repeat(8, 1)  # radius zero: only exact copies are inside
    assert ours(copies, copies.clone()) == {"precision": 1.0, "recall": 1.0, "density": 8 / 5, "coverage": 1.0}
    assert ours(copies, x)["recall"] == 1 / 50


def test_density_and_coverage_by_hand():
    """Naeem et al., figure 2: one far real image has a huge ball; density counts how many balls, not whether."""
    reference = torch.tensor([[0.0], [1.0], [2.0], [10.0]])
    samples = torch.tensor([[9.0], [9.5], [1.0], [30.0]])
    # Balls to the nearest neighbour (k = 1): radii 1, 1, 1, 8; the last one alone holds 9 and 9.5, and 1 is in 3.
    found = ours(samples, reference, k=1, density_k=1)
    assert found["density"] == (1 + 1 + 3 + 0) / 4
    assert found["coverage"] == 4 / 4
    assert ours(samples[:2], reference, k=1, density_k=1)["coverage"] == 1 / 4


def test_every_image_knows_whether_it_is_inside():
    x, y = rows(60, 5, seed=30), rows(45, 5, seed=31, scale=0.9, shift=0.5)
    figures, details = PrecisionRecall().details(FeatureSet.of(x), FeatureSet.of(y))
    assert details["sample_inside"].double().mean() == figures["precision"]
    assert details["reference_inside"].double().mean() == figures["recall"]
    radius = np.sort(squared(y.numpy(), y.numpy()), axis=1)[:, 3]
    expected = (squared(x.numpy(), y.numpy()) <= radius).any(1)
    assert details["sample_inside"].tolist() == expected.tolist()


def test_precision_and_recall_swap_with_the_sets():
    x, y = rows(60, 5, seed=33), rows(45, 5, seed=34, scale=0.7)
    one, other = ours(x, y), ours(y, x)
    assert (one["precision"], one["recall"]) == (other["recall"], other["precision"])


def test_precision_recall_agrees_with_torch_fidelity():
    from torch_fidelity.metric_prc import prc_features_to_metric

    x, y = rows(300, 16, seed=35).float(), rows(250, 16, seed=36, scale=0.8).float()
    theirs = prc_features_to_metric(x, y, prc_neighborhood=3, prc_batch_size=100, save_cpu_ram=False, verbose=False)
    found = ours(x, y)
    assert {key: found[key] for key in ("precision", "recall")} == pytest.approx(
        {key: theirs[key] for key in ("precision", "recall")}, abs=1e-6
    )


@pytest.mark.parametrize("few", ["samples", "reference"])
def test_k_images_or_fewer_are_refused(few):
    sets = {"samples": rows(9, 4, seed=0), "reference": rows(9, 4, seed=0)}
    sets[few] = sets[few][:5]
    with pytest.raises(UserError, match=rf"at least 6 images in {few} \(more than k\), found 5"):
        ours(sets["samples"], sets["reference"])


def test_precision_recall_needs_the_images_of_the_reference():
    features = FeatureSet.of(rows(9, 3, seed=0))
    with pytest.raises(UserError, match="only statistics"):
        PrecisionRecall().compute(features, FeatureSet(features.statistics))


@pytest.mark.parametrize("options", [{"k": 0}, {"density_k": 0}, {"block": 0}])
def test_precision_recall_refuses_nonsense_options(options):
    with pytest.raises(UserError, match="wanted at least 1"):
        PrecisionRecall(**options)
