"""Exports of trained models."""

from runs import run


def test_exports_are_readable_by_others(values):
    config, _ = run(values, steps=1)
    file = config.run / "student" / "diffusion_pytorch_model.safetensors"
    assert file.stat().st_mode & 0o777 == (config.run / "config.yaml").stat().st_mode & 0o777
