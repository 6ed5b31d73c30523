"""The two commands that evaluate prints make the teacher's row, of classes and of prompts."""

import json
import shlex
import shutil

import numpy as np
import pytest
import torch
from encoded import tiny_vae
from encoded_text import encode
from evaluating import photos
from safetensors.torch import load_file, save_file
from small_families import SMALL
from tiny_pipelines import write_pipeline
from tiny_text_encoders import tiny_clip

from dit_shd.cli.program import main
from dit_shd.core.plugins import Plugin
from dit_shd.core.pretrained import asset
from dit_shd.data import text_shards
from dit_shd.data.autoencoder import Autoencoder
from dit_shd.data.latent_origin import Kept, Origin
from dit_shd.diffusion.teacher_sampling import about_teacher, teacher_command
from dit_shd.evaluation.teacher_row import OF_THE_MODEL
from dit_shd.models.families import FAMILIES
from dit_shd.models.families.dit import DiT


def make_run(folder, teacher, task):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(json.dumps({"teacher": teacher, "task": {"name": task}}))
    return folder


@pytest.fixture
def of_classes(tmp_path):
    """A run on digits whose student is a worse teacher, the words that sample from it, and those that evaluate."""
    run = make_run(tmp_path / "run", "asset:digits_teacher", "diffusion")
    shutil.copytree(asset("digits_teacher"), run / "student")
    (weights,) = (run / "student").glob("*.safetensors")
    save_file({name: 0.97 * tensor for name, tensor in load_file(weights).items()}, weights)
    return run, ["count=8", "steps=2", "guidance=2", "labels=[3,1]"], ["reference=digits:validation", "features=digits"]


@pytest.fixture
def of_prompts(tmp_path):
    """A run of a tiny pipeline."""
    run, words, evaluating = run_of("sd3", tmp_path, text_tokens=8)
    return run, [*words, "guidance=3"], evaluating


@pytest.fixture(params=["guidance=2", "guidance=3.8"])
def of_a_guider(tmp_path, request):
    """A run of a pipeline whose call has no scale, which is given to its guider; 3.8 is the default of classes."""
    run, words, evaluating = run_of("hunyuan_image", tmp_path)
    return run, [*words, request.param], evaluating


def run_of(kind, tmp_path, **options):
    """A run of a tiny pipeline, words that sample from it, and those that evaluate."""
    pipeline = write_pipeline(kind, tmp_path / "pipeline")
    run = make_run(tmp_path / "run", str(pipeline), "text_to_image")
    student = FAMILIES.build(Plugin("diffusers", {"like": str(pipeline), "config": {"num_attention_heads": 2}}))
    student.save_pretrained(run / "student")
    text_shards.read_index(encode(tmp_path, pipeline, **options)).record.write(run / "student")
    (tmp_path / "prompts.txt").write_text("a thin seven\ntwo digits: four and seven\na nine\n")
    np.savez(tmp_path / "real.npz", photos(6, 16, 16, 3).numpy())
    features = f"features={{name: clip, weights: {tiny_clip(tmp_path / 'clip')}}}"
    words = [f"prompts={tmp_path / 'prompts.txt'}", "count=4", "steps=2", "seed=5"]
    return run, words, [f"reference={tmp_path / 'real.npz'}", features]


@pytest.fixture
def of_latents(tmp_path):
    """A run on latents whose teacher, as a public checkpoint, knows no autoencoder."""
    run = make_run(tmp_path / "run", str(tmp_path / "teacher"), "diffusion")
    for seed, folder in enumerate((tmp_path / "teacher", run / "student")):
        torch.manual_seed(seed)
        model = DiT(**{**SMALL, "in_channels": 2})
        for p in model.parameters():
            torch.nn.init.normal_(p, std=0.1)
        model.save_pretrained(folder)
    autoencoder = Autoencoder(tiny_vae())
    Kept(Origin.of_autoencoder("where/it/was", autoencoder), autoencoder).write(run)
    np.savez(tmp_path / "real.npz", photos(6, 16, 16, 3).numpy())
    features = f"features={{name: clip, weights: {tiny_clip(tmp_path / 'clip')}}}"
    return run, ["count=4", "steps=2", "guidance=2"], [f"reference={tmp_path / 'real.npz'}", features]


@pytest.mark.parametrize("kind", ["of_classes", "of_prompts", "of_latents"])
def test_the_printed_commands_make_the_teachers_row(kind, request, tmp_path, capsys, monkeypatch):
    run, sampling, evaluating = request.getfixturevalue(kind)
    monkeypatch.chdir(tmp_path)
    samples, teacher = run / "x.npz", json.loads((run / "config.yaml").read_text())["teacher"]
    assert main(["sample", str(run), *sampling, f"out={samples}"]) == 0
    assert json.loads(samples.with_suffix(".json").read_text())["teacher"] == teacher
    capsys.readouterr()
    assert main(["evaluate", str(samples), *evaluating]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("teacher: ")]
    assert line.startswith(
        f"teacher: {teacher} has no row here: no results file of its samples is beside these; make it: "
    )
    missing = json.loads((run / "results.json").read_text())["teacher"]
    assert missing == {
        "run": teacher,
        "why_not": missing["why_not"],
        "commands": line.split("make it: ")[1].split(" && "),
    }

    for command in missing["commands"]:
        assert main(shlex.split(command)[1:]) == 0
    capsys.readouterr()
    assert main(["evaluate", str(samples), *evaluating]) == 0
    record = json.loads((run / "results.json").read_text())
    file = run / "teacher_of_x.results.json"
    assert record["teacher"] == {"run": teacher, "results": str(file), "figures": record["teacher"]["figures"]}
    assert record["teacher"]["figures"] == json.loads(file.read_text())["figures"]
    out = capsys.readouterr().out
    assert f"teacher: {teacher}, from {file}" in out
    first, value = next(iter(record["figures"].items()))
    assert f"{value:12.4f}  {record['teacher']['figures'][first]:12.4f}" in out
    assert "teacher" in (run / "results.html").read_text()
    assert record["figures"] != pytest.approx(record["teacher"]["figures"])
    assert any(name.startswith("CLIP score") for name in record["teacher"]["figures"]) == (kind == "of_prompts")


def test_a_scale_that_is_no_argument_of_the_call_is_in_the_teacher_s_command(of_a_guider, tmp_path, monkeypatch):
    """Its samples had another guider, and were of no use as the teacher's row."""
    run, words, _ = of_a_guider
    monkeypatch.chdir(tmp_path)
    assert main(["sample", str(run), *words, f"out={run / 'x.npz'}"]) == 0
    command = shlex.split(teacher_command(run / "x.npz", run / "teacher_of_x.npz"))
    assert words[-1] in command
    assert main(command[1:]) == 0
    settings = [json.loads((run / f"{name}.json").read_text()) for name in ("x", "teacher_of_x")]
    assert {key for key in settings[0] if settings[0][key] != settings[1].get(key)} <= {*OF_THE_MODEL}


def test_the_teacher_is_that_of_the_runs_config(tmp_path):
    run = make_run(tmp_path / "run", {"large": "a", "small": "b"}, "diffusion")
    (run / "student_ema_0.99").mkdir()
    assert about_teacher(str(run)) == about_teacher(str(run / "student_ema_0.99")) == {"teacher": "a"}
    assert about_teacher(str(make_run(tmp_path / "plain", None, "diffusion"))) == {}
    assert about_teacher("hub:somebody/model") == about_teacher(str(tmp_path / "none")) == {}


def test_what_is_of_the_student_is_not_asked_of_its_teacher(tmp_path):
    settings = {"teacher": "T", "run": "R", "pipeline": "P", "prompts": ["a cat"], "steps": 7}
    (tmp_path / "s.json").write_text(json.dumps(settings))
    words = shlex.split(teacher_command(tmp_path / "s.npz", tmp_path / "t.npz"))
    prompts, out = f"prompts={tmp_path / 's.json'}", f"out={tmp_path / 't.npz'}"
    assert words == ["dit-shd", "sample", "T", prompts, "steps=7", out]
