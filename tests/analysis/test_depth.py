"""What redundant blocks are looked for with: how many are kept, timesteps, noise."""

import pytest
import torch

from dit_shd.analysis.depth import DepthConfig, find_plan
from dit_shd.core.plugins import Plugin
from dit_shd.models import export
from dit_shd.models.families.dit import DiT


@pytest.fixture
def find(shapes, tmp_path, monkeypatch):
    """find(**options): the plan of a DiT of five blocks and of 800 timesteps, its times and noisy latents."""
    torch.manual_seed(0)
    model = DiT(sample_size=8, in_channels=1, num_classes=3, num_layers=5, num_attention_heads=2, attention_head_dim=4)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    export.write(model, tmp_path / "deep", "# A model\n", training={"task": {"timesteps": 800}})
    asked, forward = [], DiT.forward

    def noting(self, hidden_states, timestep, *rest, **more):
        asked.append((torch.as_tensor(timestep).flatten()[0].item(), hidden_states.clone()))
        return forward(self, hidden_states, timestep, *rest, **more)

    def run(**options):
        asked.clear()
        given = {"data": Plugin("npz", {"path": str(shapes)}), "samples": 16, **options}
        _, plan = find_plan(DepthConfig(str(tmp_path / "deep"), **given))
        return plan, [t for t, _ in asked], torch.cat([x[:2] for _, x in asked])

    monkeypatch.setattr(DiT, "forward", noting)
    return run


def test_half_of_the_blocks_are_kept_and_times_are_of_the_models_schedule(find):
    plan, times, noisy = find()
    assert list(plan.weights) == ["blocks.0", "blocks.1", "blocks.2"], "half, rounded up"
    assert list(dict.fromkeys(times)) == [80, 240, 400, 560, 720]
    assert torch.equal(find()[2], noisy) and not torch.equal(find(seed=1)[2], noisy)
    assert [*plan.layers.values()][-1] == "blocks.4" and plan.errors != find(seed=1)[0].errors
