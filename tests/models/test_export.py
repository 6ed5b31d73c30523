"""Exports of trained models."""

from runs import run

from dit_shd.models.export import exported_step, exported_task


def test_exports_are_readable_by_others(values):
    config, _ = run(values, steps=1)
    file = config.run / "student" / "diffusion_pytorch_model.safetensors"
    assert file.stat().st_mode & 0o777 == (config.run / "config.yaml").stat().st_mode & 0o777


def test_an_export_says_how_it_is_sampled_wherever_it_is(values):
    """Of the task what decides on sampling, so that a student on the hub is not sampled by 1,000 steps."""
    config, _ = run({**values, "task": {"name": "diffusion", "timesteps": 50}}, steps=1)
    assert exported_task(str(config.run)) == exported_task(str(config.run / "student")) == {"timesteps": 50}
    assert exported_step(config.run / "student") == 1
    assert exported_task(str(config.run / "checkpoints")) == exported_task("asset:digits_teacher") == {}
