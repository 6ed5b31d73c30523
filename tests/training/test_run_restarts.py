"""A run that is begun again in its folder: after a kill or an error, beside another one, with another config."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from runs import contents, rows, run

from dit_shd.core.config import make, resumable_keys
from dit_shd.core.errors import UserError
from dit_shd.core.yaml_files import dump
from dit_shd.training import run_folder
from dit_shd.training.config import TrainConfig
from dit_shd.training.run_folder import RunFolder
from dit_shd.training.trainer import Trainer, train


def test_a_loop_that_was_broken_off_does_not_go_on_beside_a_later_one(values):
    """As of a notebook: both would write the same rows and checkpoints."""
    config = make(TrainConfig, {**values, "log_every": 1})
    first = train(config)
    next(first)
    again = list(train(config))
    with pytest.raises(UserError, match="the run was taken up again in this process since"):
        list(first)
    assert [row["step"] for row in rows(config.run)] == [step.number for step in again] == [1, 2, 3, 4]


def test_an_error_that_is_kept_does_not_keep_the_folder(values):
    config, _ = run(values, steps=2)
    for file in config.run.glob("checkpoints/*/state.json"):
        file.write_text("{}")
    with pytest.raises(UserError, match="no checkpoint is sound") as kept:
        run(values, steps=4)
    assert not (config.run / ".lock").exists() and kept.value


def test_a_script_may_change_its_folder_between_steps(values, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "there" / "run").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    for step in train(make(TrainConfig, {**values, "run": "run", "checkpoint_every": 1, "log_every": 1})):
        monkeypatch.chdir(tmp_path / ("there" if step.number < 3 else "here"))
    assert not [*(tmp_path / "there" / "run").iterdir()]
    assert [row["step"] for row in rows(tmp_path / "here" / "run")] == [1, 2, 3, 4]


def test_a_kill_before_the_config_is_written_leaves_a_folder_that_can_be_used(values):
    config = make(TrainConfig, values)
    config.run.mkdir()
    (config.run / ".lock").write_text("")
    (config.run / ".config.yaml.99.dit_shd.part").write_text("run: ")
    RunFolder.open(config.run, dump(config), resumable_keys(TrainConfig)).release()
    assert (config.run / "config.yaml").exists()


def test_two_runs_in_one_folder_the_second_is_refused(values, root):
    """The first is another process, which waits."""
    code = (
        "import sys, time; from pathlib import Path; from dit_shd.core.lock import Lock\n"
        "lock = Lock(Path(sys.argv[1]), 'dit-shd train'); print('held', flush=True); time.sleep(60)"
    )
    config, _ = run(values, steps=2)
    before = contents(config.run)
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(config.run / ".lock")],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    try:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match=f"run: in use by dit-shd train, pid {process.pid} on "):
            run(values)
        assert {k: v for k, v in contents(config.run).items() if k != ".lock"} == before
    finally:
        process.kill()
        process.wait()
    assert [m["step"] for m in run(values)[1]] == [3, 4]
    assert not (config.run / ".lock").exists()


def test_a_kill_before_the_first_checkpoint_leaves_no_double_lines(values):
    config = make(TrainConfig, {**values, "checkpoint_every": 100})
    for step in train(config):
        if step.number == 2:
            break
    run(values, checkpoint_every=100)
    assert [json.loads(x)["step"] for x in (config.run / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4]


def test_what_follows_from_a_checkpoint_is_made_where_a_kill_came_before_it(values):
    config, _ = run(values, evaluation={"every": 2, "count": 4, "steps": 3})
    whole, student = contents(config.run), config.run / "student"

    def older():
        file = student / "training.json"
        file.write_text(file.read_text().replace('"step": 4', '"step": 2'))
        (student / "diffusion_pytorch_model.safetensors").write_bytes(b"older")

    for lose in (
        lambda: shutil.rmtree(student),
        lambda: student.rename(config.run / ".student.dit_shd.old"),  # a kill between two renames
        older,
        (config.run / "evaluations" / "step_00000004.png").unlink,
    ):
        lose()
        assert contents(config.run) != whole
        Trainer.from_config(config).folder.release()
        assert contents(config.run) == whole


def test_a_folder_of_another_config_is_refused_untouched(values):
    config, _ = run(values, steps=2)
    before = (config.run / "config.yaml").read_text()
    with pytest.raises(UserError, match=r"another config \(losses\.1\.seed: 0 there, 5 here, seed: 0 there, 5 here\)"):
        run({**values, "seed": 5})
    losses = [{"name": "output"}, {"name": "shd", "weight": 2.0}]
    for changed, told in (
        (losses[:1], r"losses: \[output, shd\] there, \[output\] here"),
        ([losses[0], {"name": "kd"}], r"losses\.1: shd there, kd here"),
        ([losses[0], {**losses[1], "weight": 1.0}], r"losses\.1\.weight: 2\.0 there, 1\.0 here"),
    ):
        with pytest.raises(UserError, match=told):
            run_folder.check_same(config.run, {"losses": losses}, dump({"losses": changed}), ())
    assert (config.run / "config.yaml").read_text() == before
