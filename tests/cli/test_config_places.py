"""Configs of other folders: their relative paths count from the folder one is in, and the error says so."""

import os
from pathlib import Path

import pytest

from dit_shd.cli import program


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    """A run that was begun in project/, seen from elsewhere/."""
    for folder in ("project/runs/student", "project/runs/teacher", "project/my data", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
    text = "run: runs/student\nteacher: runs/teacher\ndata: {name: latents, path: my data}\n"
    (tmp_path / "project/runs/student/config.yaml").write_text(text)
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path


def error_of(*words, capsys):
    assert program.main(["train", *words]) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("word", ["../project/runs/student", "../project/runs/student/config.yaml"])
def test_the_error_says_where_the_paths_count_from_and_what_to_add(experiment, word, capsys):
    error = error_of(word, "steps=44", capsys=capsys)
    assert "teacher 'runs/teacher' and data.path 'my data' of it are not here, but in '../project'" in error
    assert error.endswith("go there, or add teacher=../project/runs/teacher 'data.path=../project/my data'\n")
    assert "hub" not in error


def test_what_is_added_is_not_asked_for_again(experiment, capsys):
    error = error_of("../project/runs/student", "teacher=../project/runs/teacher", capsys=capsys)
    assert "data.path 'my data' of it is not here" in error and "teacher 'runs" not in error
    error = error_of(
        "../project/runs/student", "teacher=../project/runs/teacher", "data={name: latents, path: ../project/my data}",
        capsys=capsys,
    )  # fmt: skip
    assert "is not here" not in error and "project/my data" in error  # an empty folder


def test_of_several_teachers_each_is_looked_for(experiment, capsys):
    text = "run: runs/x\nteacher: {a: runs/teacher, b: runs/none}\ndata: digits\n"
    (experiment / "project/two.yaml").write_text(text)
    error = error_of("../project/two.yaml", capsys=capsys)
    assert "teacher.a 'runs/teacher' of it is not here" in error and "teacher.b" not in error


def test_what_was_moved_is_said_without_the_hub(experiment, capsys):
    os.rename(experiment / "project/runs/teacher", experiment / "moved")
    os.rename(experiment / "project/my data", experiment / "moved data")
    error = error_of("../project/runs/student", capsys=capsys)
    assert "teacher: wanted a run folder" in error and "found nothing at 'runs/teacher'" in error
    assert error.endswith("go to where it was begun, or add teacher=PATH data.path=PATH\n") and "hub:O" not in error


def test_from_its_own_folder_and_above_it_the_path_is_the_error(experiment, monkeypatch, capsys):
    (experiment / "project/runs/teacher").rmdir()
    monkeypatch.chdir(experiment / "project")
    assert "what is on the Hugging Face hub" in error_of("runs/student", capsys=capsys)


def test_experiments_that_ship_are_begun_anywhere(experiment, capsys):
    error = error_of("digits_flow_shd", capsys=capsys)
    assert (
        "teacher: 'runs/digits_flow_teacher' is not here yet; make it first: dit-shd train digits_flow_teacher" in error
    )
    assert not Path("runs").exists()
    error = error_of("digits_flow_shd", "teacher=runs/nowhere", capsys=capsys)
    assert "teacher: wanted" in error and "relative paths" not in error
    error = error_of("babyllama_shd", "teacher.llama=runs/nowhere", capsys=capsys)
    assert (
        "teacher.gpt2: 'runs/babyllama_gpt2_teacher' is not here yet; make it first: dit-shd train babyllama_gpt2_t"
        in error
    )
    assert program.main(["train", "digits_flow_shd", "dry_run=true", "estimate.measure=false"]) == 0
