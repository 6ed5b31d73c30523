"""Bootstrap intervals: as wide as the figures of other draws really spread, and around the figure."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy import stats

from dit_shd.evaluation.bootstrap import intervals, resampled
from dit_shd.evaluation.feature_set import FeatureSet
from dit_shd.evaluation.metrics import Metric
from dit_shd.evaluation.metrics.frechet import Frechet
from dit_shd.evaluation.metrics.inception_score import InceptionScore
from dit_shd.evaluation.metrics.kid import KID
from dit_shd.evaluation.metrics.precision_recall import PrecisionRecall
from dit_shd.evaluation.metrics.spatial_frechet import SpatialFrechet

METRICS: list[Metric] = [Frechet(), SpatialFrechet(), InceptionScore(), KID(subsets=4), PrecisionRecall()]


def features(x: torch.Tensor) -> FeatureSet:
    return FeatureSet.of(x, 2 * x, spatial=x[:, :3])


def figures(samples: FeatureSet, reference: FeatureSet) -> dict[str, float]:
    found: dict[str, float] = {}
    for metric in METRICS:
        found |= metric.compute(samples, reference)
    return found


def test_the_deviation_is_that_of_other_draws():
    """Against the spread over 60 sets drawn anew."""
    generator = torch.Generator().manual_seed(0)
    reference = features(torch.randn(150, 4, generator=generator))
    draws = [features(1.2 * torch.randn(150, 4, generator=generator)) for _ in range(60)]
    known = [figures(draw, reference) for draw in draws]
    found = [intervals(METRICS, draws[i], reference, known[i], 20, seed=i) for i in range(5)]
    assert not {"recall", "coverage"} & found[0].keys()
    for name in found[0]:
        spread = np.std([k[name] for k in known], ddof=1)
        ratio = np.mean([f[name]["std"] for f in found]) / spread
        assert 0.6 < ratio < 1.8, (name, ratio)


def test_an_interval_is_around_the_figure_and_repeats_itself():
    x, reference = (features(torch.randn(60, 4, generator=torch.Generator().manual_seed(s))) for s in (1, 2))
    known = figures(x, reference)
    found = intervals(METRICS, x, reference, known, 10)
    assert found == intervals(METRICS, x, reference, known, 10)
    assert found != intervals(METRICS, x, reference, known, 10, seed=1)
    generator = torch.Generator().manual_seed(0)
    again = [figures(resampled(x, generator), reference) for _ in range(10)]
    assert set(found) == {name for name in known if not name.endswith(" std")} - {"recall", "coverage"}
    for name, ends in found.items():
        assert ends["low"] < known[name] < ends["high"]
        assert ends["std"] == pytest.approx(np.std([each[name] for each in again], ddof=1))
        if ends["high"] == 1:  # precision
            continue
        assert ends["high"] - ends["low"] == pytest.approx(2 * stats.norm.ppf(0.975) * ends["std"])


def test_an_interval_ends_where_no_figure_can_be():
    """A precision next to 1, a density and a distance next to 0."""
    r = torch.Generator().manual_seed(0)
    x = features(torch.randn(40, 4, generator=r))
    far = features(torch.cat([x.pooled[:38], x.pooled[38:] + 100]))
    known = {"precision": 0.99, "density": 0.01, "FD(x)": 1e-9}
    metrics = [PrecisionRecall(), Frechet()]
    name = next(iter(Frechet().compute(far, x)))
    known[name] = known.pop("FD(x)")
    found = intervals(metrics, far, x, known, 10)
    assert found["precision"]["high"] == 1
    assert found["precision"]["low"] < 0.99
    assert found["density"]["low"] == found[name]["low"] == 0
    assert found["density"]["high"] > 0.01


def test_rows_of_one_image_stay_together():
    drawn = resampled(features(torch.arange(120.0).reshape(40, 3)), torch.Generator().manual_seed(3))
    assert drawn.pooled is not None
    assert drawn.logits is not None
    assert torch.equal(drawn.logits, 2 * drawn.pooled)
    assert 0 < len(drawn.pooled.unique(dim=0)) < 40
    assert drawn.spatial is not None
    torch.testing.assert_close(drawn.spatial.mean, drawn.pooled.double().mean(0))


@pytest.mark.parametrize("prompts", [[0, *[1] * 20, 2, *[3] * 38], [*range(4)] * 15])
def test_prompts_are_drawn_with_all_their_images_until_there_are_as_many(prompts):
    """Whether the images of a prompt follow each other or lie apart."""
    x = torch.arange(60.0)[:, None].expand(-1, 3)
    prompts = torch.tensor(prompts)
    samples = dataclasses.replace(FeatureSet.of(x), prompts=prompts)
    for seed in range(20):
        drawn = resampled(samples, torch.Generator().manual_seed(seed)).pooled[:, 0].long()
        counts = drawn.bincount(minlength=60)
        runs = [counts[prompts == i] for i in range(4)]
        assert len(drawn) == 60 and sum(int(run.min() < run.max()) for run in runs) <= 1  # one prompt may be cut


def test_prompts_stay_with_their_images_and_every_image_may_be_drawn():
    x = torch.arange(40.0)[:, None].expand(-1, 3)
    samples = dataclasses.replace(FeatureSet.of(x), texts=2 * x)
    draws = [resampled(samples, torch.Generator().manual_seed(seed)) for seed in range(20)]
    assert all(torch.equal(drawn.texts, 2 * drawn.pooled) for drawn in draws)
    assert set(torch.cat([drawn.pooled for drawn in draws])[:, 0].tolist()) == set(range(40))
