"""Folders of models: of which run a model is."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from dit_shd.core.pretrained import config_of_run
from dit_shd.models import loading

WEIGHTS = "diffusion_pytorch_model.safetensors"


def test_a_model_is_of_a_run_by_its_folder_and_by_its_weights(tmp_path, monkeypatch):
    """A run's students are its models; what else lies in its folder, as an autoencoder, may be of others."""
    run = tmp_path / "run"
    for name in ("student", "student_ema_0.99", "vae", "other"):
        (run / name).mkdir(parents=True)
        (run / name / "config.json").write_text(json.dumps({"_class_name": "DiT"}))
        (run / name / WEIGHTS).write_bytes(b"")
    (run / "config.yaml").write_text("steps: 1\n")
    students = [run / "student", run / "student_ema_0.99"]
    for place in [run, *students, *(student / WEIGHTS for student in students)]:
        assert config_of_run(place) == run / "config.yaml"
        assert config_of_run(str(place)) == run / "config.yaml"
    for place in [run / "vae", run / "other", run / "other" / WEIGHTS, tmp_path, run / "student" / "none"]:
        assert config_of_run(place) is None
    monkeypatch.chdir(run / "student")
    assert config_of_run(".") == run / "config.yaml"
    monkeypatch.chdir(run)
    assert config_of_run("student") == run / "config.yaml"


@pytest.mark.parametrize("place", ["", "hub:somebody/student", "asset:digits_teacher"])
def test_a_config_in_the_working_folder_is_of_no_other_place(tmp_path, monkeypatch, place):
    (tmp_path / "config.yaml").write_text("steps: 1\n")
    monkeypatch.chdir(tmp_path)
    assert config_of_run(place) is None


def test_two_threads_that_read_at_once_leave_torch_as_it_was():
    """Diffusers has modules made without memory while it reads: what each thread puts back had been the other's."""
    with ThreadPoolExecutor(4) as threads:
        devices = list(threads.map(lambda _: next(loading.load("asset:digits_teacher").parameters()).device, range(32)))
    assert {device.type for device in devices} == {"cpu"} == {torch.nn.Linear(1, 1).weight.device.type}
