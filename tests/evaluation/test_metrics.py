"""Laws and independent oracles of the metrics. All data are drawn here from fixed seeds."""

import dataclasses
import math

import pytest
from evaluating import rows

from dit_shd.evaluation.feature_set import FeatureSet
from dit_shd.evaluation.metrics import METRICS


@pytest.mark.parametrize("name", METRICS.names())
def test_every_metric_gives_finite_named_figures_and_calls_no_other_network_fid(name):
    metric = METRICS.find(name)()
    x, y = rows(80, 6, seed=40).float(), rows(70, 6, seed=41).float()

    def figures(title: str, is_fid: bool) -> dict[str, float]:
        samples, reference = (FeatureSet.of(z, z, title, is_fid, z) for z in (x, y))
        if metric.needs_text:  # features of the samples' prompts, too
            samples = dataclasses.replace(samples, texts=y[:1].expand_as(x))
        return metric.compute(samples, reference)

    other, real = figures("mine", False), figures("inception-2015", True)
    assert other
    assert all(isinstance(v, float) and math.isfinite(v) for v in other.values())
    assert list(other.values()) == pytest.approx(list(real.values()))
    assert not any("FID" in key or key in ("IS", "KID") for key in other)
    assert not any("(" in key for key in real)
