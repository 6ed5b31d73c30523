"""Exports of trained models."""

from runs import run

from dit_shd.models.export import exported_step, exported_values, for_sampling

GUIDANCE = {"scale": 2.0, "schedule": "constant", "power": 4.0, "channels": None}


def test_exports_are_readable_by_others(values):
    config, _ = run(values, steps=1)
    file = config.run / "student" / "diffusion_pytorch_model.safetensors"
    assert file.stat().st_mode & 0o777 == (config.run / "config.yaml").stat().st_mode & 0o777


def test_an_export_says_how_it_is_sampled_wherever_it_is(values):
    """Of the task what decides on sampling, so that a student on the hub is not sampled by 1,000 steps."""
    task, losses = {"name": "diffusion", "timesteps": 50}, [{"name": "output", "guidance": 2.0}, {"name": "shd"}]
    config, _ = run({**values, "task": task, "losses": losses}, steps=1)
    expected = {"task": {"timesteps": 50, "label_dropout": 0.1}, "losses": [{"name": "output", "guidance": GUIDANCE}]}
    assert exported_values(str(config.run)) == exported_values(str(config.run / "student")) == expected
    assert exported_step(config.run / "student") == 1
    assert exported_values(str(config.run / "checkpoints")) == exported_values("asset:digits_teacher") == {}


def test_a_loss_that_is_guided_by_nothing_is_guided():
    """Guidance 0 is the unconditional prediction."""
    losses = [{"name": "output", "guidance": 0.0}, {"name": "shd"}]
    assert for_sampling({"losses": losses}) == {"losses": losses[:1]}
