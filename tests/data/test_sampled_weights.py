"""Images of weights that their model has no more, by the settings beside them."""

import os

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dit_shd.core.hashing import sha256_of_tensors
from dit_shd.data import sampled_weights
from dit_shd.data.sampled_weights import are_of_earlier, have_changed, present_place


@pytest.fixture
def folder(tmp_path):
    """A run with a student."""
    student = tmp_path / "run" / "student"
    student.mkdir(parents=True)
    (student / "config.json").write_text("{}")
    return student


def settings(folder, **changes):
    """Those of samples of what is saved in a folder."""
    torch.manual_seed(0)
    model = nn.Linear(2, 3)
    save_file(model.state_dict(), folder / "model.safetensors")
    return {"run": str(folder.parent), "model_sha256": sha256_of_tensors(model), **changes}


def go_on(folder):
    save_file(nn.Linear(2, 3).state_dict(), folder / "model.safetensors")


def test_a_run_that_went_on_has_other_weights(folder):
    run, sampled, nowhere = folder.parent, settings(folder), folder / "none.json"
    assert not are_of_earlier(nowhere, sampled, run, [folder])
    go_on(folder)
    assert have_changed(sampled, [folder])
    for place in (str(run), str(folder), str(folder / ".." / ".." / "run"), "away/run"):
        assert are_of_earlier(nowhere, {**sampled, "run": place}, run, [folder])
    other = folder.parent.parent / "other" / "student"
    other.mkdir(parents=True)
    (other / "config.json").write_text("{}")
    for place in (str(other.parent), "away/other", "", None):
        assert not are_of_earlier(nowhere, {**sampled, "run": place}, run, [folder]), (
            "of another model, or nobody knows"
        )
    settings(other)
    assert not are_of_earlier(nowhere, sampled, run, [folder, other]), "one of its averages"
    elsewhere = {**sampled, "run": str(other.parent)}
    assert not are_of_earlier(nowhere, elsewhere, run, [folder]), "of another model, as it is"
    go_on(other)
    assert are_of_earlier(nowhere, elsewhere, run, [folder]), "a copy of a run, both of which went on"


def test_the_model_of_images_is_where_their_weights_are_now(folder, monkeypatch):
    """Of a run that was renamed or copied, also where another run has its place, and from another folder."""
    sampled = settings(folder)
    run, file = folder.parent, folder.parent / "results.json"
    (run / "config.yaml").write_text("{}")
    assert present_place(sampled, file) == str(run) and present_place({**sampled, "run": None}, file) is None
    renamed = run.with_name("renamed")
    run.rename(renamed)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    go_on(folder)  # another run at the old place
    for place in (str(run), "run", "away/x"):
        assert present_place({**sampled, "run": place}, renamed / "deep" / "results.json") == str(renamed)
    average = renamed / "student_ema_0.9"
    average.mkdir()
    (renamed / "student" / "model.safetensors").rename(average / "model.safetensors")
    assert present_place(sampled, renamed / "results.json") == str(average)
    go_on(average)
    assert present_place(sampled, renamed / "results.json") == str(run), "a teacher's, or of weights that are gone"
    assert present_place({**sampled, "run": "away/renamed"}, renamed / "x.json") == str(renamed), "has changed"
    for other in ("away/x", "hub:away/renamed", "asset:renamed"):
        assert present_place({**sampled, "run": other}, renamed / "x.json") == other
        assert not are_of_earlier(renamed / "none", {**sampled, "run": other}, renamed, [average])
    assert present_place(sampled, renamed.parent / "x.json") == str(run)


def test_where_it_cannot_be_told_nothing_has_changed(folder):
    sampled = settings(folder)
    go_on(folder)
    assert not have_changed(sampled, [])
    assert not have_changed({"run": sampled["run"]}, [folder])
    assert not have_changed({**sampled, "prompts": ["a"], "precision": "bf16"}, [folder])
    assert have_changed({**sampled, "prompts": ["a"], "precision": "no"}, [folder])
    (folder / "model.safetensors").write_bytes(b"")
    assert not have_changed(sampled, [folder])


def test_weights_that_are_older_than_the_samples_are_not_read(folder, monkeypatch):
    """Those of a large run take seconds, and a listing of runs is to be there at once."""
    sampled, file = settings(folder), folder.parent / "samples.json"
    go_on(folder)
    file.write_text("{}")
    os.utime(folder / "model.safetensors", (1, 1))
    teacher = folder.parent.parent / "teacher"
    teacher.mkdir()
    (teacher / "config.json").write_text("{}")
    of_teacher = settings(teacher)
    os.utime(teacher / "model.safetensors", (1, 1))
    monkeypatch.setattr(sampled_weights, "sha256_of_weights", lambda _: pytest.fail("read"))
    os.utime(folder / "model.safetensors")
    assert not are_of_earlier(file, {**of_teacher, "run": str(teacher)}, folder.parent, [folder]), "as large as it is"
    os.utime(folder / "model.safetensors", (1, 1))
    assert not are_of_earlier(file, sampled, folder.parent, [folder])
