"""What sampling takes from a run or a pipeline: its schedule, and whether guidance fits how it was trained."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from dit_shd.core.config import make
from dit_shd.diffusion.sample_config import SampleConfig
from dit_shd.diffusion.sampled_run import drawn_size_remarks, of_run, prompt_remarks, remarks, words_of_run
from dit_shd.diffusion.sampler import sample
from dit_shd.diffusion.teacher_sampling import about_teacher
from dit_shd.models.export import run_values
from dit_shd.models.loading import load

QUICK = dict(steps=6, batch_size=4, guided_channels=None)


@pytest.fixture
def run(teacher, tmp_path) -> Path:
    """A run folder without its config."""
    shutil.copytree(teacher, tmp_path / "run" / "student")
    return tmp_path / "run"


def test_a_run_knows_its_schedule(teacher, tmp_path):
    shutil.copytree(teacher, tmp_path / "run" / "student")
    (tmp_path / "run" / "config.yaml").write_text("diffusion_steps: 100\n")
    assert of_run(make(SampleConfig, {"run": str(tmp_path / "run")})).diffusion_steps == 100
    assert of_run(make(SampleConfig, {"run": str(tmp_path / "run" / "student")})).diffusion_steps == 100
    assert of_run(make(SampleConfig, {"run": str(teacher)})).diffusion_steps == 1000


def test_a_pipeline_that_draws_another_size_than_it_is_asked_for_is_noted():
    """A student of 64 pixels was scored at 32, since its pipeline takes every autoencoder to have a factor of 8."""
    (line,) = drawn_size_remarks({"height": 64, "width": 64}, (32, 32))
    assert line.startswith("size: 32 x 32 pixels (height, width) drawn, not 64 x 64: ")
    for call, drawn in (({"height": 64, "width": 32}, (64, 32)), ({"height": 64}, (32, 32)), ({}, (32, 32))):
        assert not list(drawn_size_remarks(call, drawn))


@pytest.mark.parametrize(
    ("task", "said"), [("mine.Fixed", True), ("mine.Fixed, timesteps: 100", False), ("diffusion", False)]
)
def test_the_schedule_of_a_task_of_ones_own_is_not_known(task, said, tmp_path):
    (tmp_path / "config.yaml").write_text(f"task: {{name: {task}}}\n")
    lines = [*remarks(make(SampleConfig, {"run": str(tmp_path), "guidance": 1.0}))]
    wanted = "task mine.Fixed has no key timesteps; a model of noise is drawn along the linear schedule of 1000 steps"
    assert [wanted in line for line in lines] == [True] * said


def test_a_model_that_was_loaded_is_sampled_as_the_run_it_is_of(teacher, tmp_path):
    """By its object, by its run's name, and where only the student was copied to: the run's schedule is not 1,000."""
    run, copy = tmp_path / "run", tmp_path / "elsewhere"
    shutil.copytree(teacher, run / "student")
    (run / "config.yaml").write_text("task: {name: diffusion, timesteps: 100}\ndata: {name: npz}\n")
    shutil.copytree(run / "student", copy)
    (copy / "training.json").write_text('{"step": 1, "task": {"timesteps": 100}}')
    images = [sample(made, count=2, **QUICK)[0] for made in (str(run), load(run), load(run / "student"), str(copy))]
    assert all(np.array_equal(images[0], other) for other in images[1:])
    assert not np.array_equal(images[0], sample(load(teacher), count=2, **QUICK)[0])


def test_a_config_that_lies_in_the_working_folder_is_nobodys(tmp_path, monkeypatch):
    (tmp_path / "config.yaml").write_text("task: {name: diffusion, timesteps: 100}\n")
    monkeypatch.chdir(tmp_path)
    assert run_values("") == {}


@pytest.mark.parametrize(
    ("config", "sampled", "words"),
    [
        (
            "losses: [{name: output, guidance: {scale: 3.8}}, {name: shd}]",
            {"guidance": 3.8},
            "and 3.8 guides it once mor",
        ),
        ("losses: [{name: output, guidance: 2.0}]", {"guidance": 2}, "taught the teacher's guided prediction"),
        ("losses: [{name: output, guidance: 2.0}]", {"guidance": 1}, ""),
        ("losses: [{name: output, guidance: 1.0}, {name: shd}]", {"guidance": 2}, ""),
        ("task: {label_dropout: 0.0}", {"guidance": 2}, "taught no prediction without a class (task.label_dropout=0)"),
        ("task: {label_dropout: 0.0}", {"guidance": 1}, ""),
        ("task: {label_dropout: 0.1}", {"guidance": 2}, ""),
        ("task: {label_dropout: 1.0}", {"guidance": 1}, "taught no prediction with a class (task.label_dropout=1)"),
        ("task: {label_dropout: 1.0}", {"guidance": 0, "guidance_schedule": "constant"}, ""),
    ],
)
def test_guidance_that_does_not_fit_the_training_is_named(run, caplog, config, sampled, words):
    (run / "config.yaml").write_text(config)
    sample(run, count=2, **{**QUICK, "steps": 1, **sampled})
    assert words in caplog.text if words else not caplog.text


@pytest.mark.parametrize(
    ("config", "scale", "words"),
    [
        ("losses: [{name: output, guidance: 4.0}]", 7.0, "and 7 guides it once more"),
        ("losses: [{name: output, guidance: 4.0}]", 1.0, ""),
        ("losses: [{name: output}]\ntask: {text_dropout: 0.1}", 7.0, ""),
        ("task: {text_dropout: 0.0}", 5.0, "taught no prediction without text (task.text_dropout=0)"),
        ("task: {text_dropout: 0.0}", 1.0, ""),
    ],
)
def test_guidance_of_prompts_that_does_not_fit_the_training_is_named(tmp_path, config, scale, words):
    (tmp_path / "config.yaml").write_text(config)
    said = "".join(prompt_remarks(str(tmp_path), scale))
    assert words in said if words else not said


def test_a_student_away_from_its_run_says_it_too(teacher, tmp_path, caplog):
    shutil.copytree(teacher, tmp_path / "student")
    training = {"step": 3, "losses": [{"name": "output", "guidance": {"scale": 4.0}}], "task": {"label_dropout": 0.1}}
    (tmp_path / "student" / "training.json").write_text(json.dumps(training))
    sample(tmp_path / "student", count=2, **{**QUICK, "steps": 1})
    assert "guidance=1 samples what was taught" in caplog.text


def test_the_teacher_of_a_student_that_is_named_by_its_weights(run):
    (run / "config.yaml").write_text("teacher: big")
    places = [run, run / "student", run / "student" / "diffusion_pytorch_model.safetensors"]
    assert [about_teacher(str(place)) for place in places] == [{"teacher": "big"}] * 3


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("task: {timesteps: 1000, label_dropout: 0.1}\nlosses: [{name: output, guidance: null}]", []),
        ("task: {timesteps: 200}", ["diffusion_steps=200"]),
        ("losses: [{name: output, guidance: 2.0}]", ["guidance=1"]),
        ("task: {label_dropout: 0.0}", ["guidance=1"]),
        ("task: {label_dropout: 1.0}", ["guidance=0 guidance_schedule=constant guided_channels=null"]),
    ],
)
def test_words_for_weights_away_from_their_run_are_those_that_are_no_default(run, config, words):
    (run / "config.yaml").write_text(config)
    assert words_of_run(str(run), load(run / "student")) == words


@pytest.mark.parametrize(("density", "words"), [("{name: uniform}", []), ("{shift: 2.5}", ["shift=2.5"])])
def test_the_shift_of_a_flow_is_one_of_these_words(flow_teacher, tmp_path, density, words):
    (tmp_path / "config.yaml").write_text(f"task: {{name: flow_matching, timestep_density: {density}}}")
    assert words_of_run(str(tmp_path), load(flow_teacher)) == words
