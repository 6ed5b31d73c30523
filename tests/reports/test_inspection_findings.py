"""What an analysis of attention found: where plans differ, where a constant would do, where alpha moves."""

import numpy as np

from dit_shd.analysis.survey import LayerSurvey
from dit_shd.reports.figures.alpha import LayerAlpha
from dit_shd.reports.inspection_findings import alpha_findings, largest_change, mean_inside, plan_finding

NEIGHBOURS, CROSSED = ((0, 1), (2, 3)), ((0, 2), (1, 3))


def survey(name: str, alike: float, apart: float, matched=CROSSED) -> LayerSurvey:
    """Heads 0 and 2, and 1 and 3, have cosine `alike`, all others `apart`."""
    cosines = np.full((4, 4), apart)
    for i, j in ((0, 2), (1, 3)):
        cosines[i, j] = cosines[j, i] = alike
    np.fill_diagonal(cosines, 1.0)
    nothing = np.zeros((1, 1, 2))
    return LayerSurvey(name, 16, cosines, NEIGHBOURS, matched, nothing, np.zeros(1), np.zeros(1))


def test_cosines_inside_groups():
    layer = survey("x", 0.9, 0.3)
    assert np.isclose(mean_inside(layer.cosines, NEIGHBOURS), 0.3)
    assert np.isclose(mean_inside(layer.cosines, CROSSED), 0.9)
    assert mean_inside(layer.cosines, ((0,), (1,), (2,), (3,))) is None


def test_layers_where_a_matched_plan_helps_are_counted():
    layers = [survey("a.attn", 0.9, 0.3), survey("b.attn", 0.5, 0.4), survey("c.attn", 0.4, 0.4, NEIGHBOURS)]
    assert plan_finding(layers) == (
        "A matched plan helps in 2 of 3 layers: its groups are more similar inside, by a cosine of up to 0.60 (a)."
    )
    assert "does not help in any of 1 layers" in plan_finding(layers[2:])


def test_merges_that_are_no_plain_average_are_counted_and_the_largest_change_is_named():
    t = np.repeat([100, 900], 5)
    moving = np.stack([np.where(t == 100, 0.1, 0.8), np.full(10, 0.5)], 1)
    still = np.full((10, 2), 0.45)
    layers = [LayerAlpha("a.attn", ["0|1", "2|3"], still, t), LayerAlpha("b.attn", ["0|1", "2|3"], moving, t)]
    first, second = alpha_findings(layers)
    assert first.startswith("0 of 4 merges"), "a median between both is near a half, though alpha never is"
    assert second == ("Alpha changes most with the timestep in b, heads 0|1: from 0.10 at t = 100 to 0.80 at t = 900.")
    assert largest_change(layers[0])[0] < 1e-12
    assert len(alpha_findings(layers[:1])) == 1
    four = np.tile([1 / 2, 2 / 3, 3 / 4], (10, 1))  # exactly the mean of four heads
    assert alpha_findings([LayerAlpha("a", ["0|1", "0+1|2", "0+1+2|3"], four, t)])[0].startswith("0 of 3 merges")
    halves = np.full((10, 3), 0.5)  # the last head has half of the weight
    assert alpha_findings([LayerAlpha("a", ["0|1", "0+1|2", "0+1+2|3"], halves, t)])[0].startswith("2 of 3 merges")
    assert alpha_findings([]) == []
