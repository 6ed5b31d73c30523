"""Trackers: a run that is killed and resumed tells each step once, and its config."""

from collections import Counter

import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import LoggerType
from runs import rows

from dit_shd.core.config import make
from dit_shd.core.errors import UserError
from dit_shd.training.config import TrainConfig
from dit_shd.training.run_folder import RunFolder
from dit_shd.training.tracker import FILE, Tracker, hyperparameters
from dit_shd.training.trainer import Trainer

WANDB = """
import json, os

class Config:
    def update(self, values, **_): write({"config": values})

class Run:
    def log(self, values, step=None, **_): write({"step": step, "values": values})
    def finish(self): pass

config = Config()

def init(**_):
    if "NO_ACCOUNT" in os.environ: raise RuntimeError("api_key not configured\\nrun wandb login")
    return Run()

def write(row):
    with open(os.environ["TOLD"], "a") as file: file.write(json.dumps(row) + "\\n")
"""


@pytest.fixture
def told(tmp_path, monkeypatch):
    """What a stand-in for wandb was told; accelerate's own code talks to it."""
    (tmp_path / "wandb.py").write_text(WANDB)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "wandb", raising=False)
    monkeypatch.setattr("accelerate.tracking._available_trackers", [LoggerType.WANDB])
    monkeypatch.setenv("TOLD", str(tmp_path / "told.jsonl"))
    return lambda: rows(tmp_path, "told.jsonl")


def train(values, stop=None, **changes):
    """Some steps, after which the process is gone without another word."""
    AcceleratorState._reset_state(reset_partial_state=True)
    trainer = Trainer.from_config(make(TrainConfig, {**values, "tracker": "wandb", **changes}))
    for step in trainer.run_steps():
        if step.number == stop:
            break
    return trainer


def steps_of(told):
    return [row["step"] for row in told() if "step" in row]


def test_no_step_is_told_twice_and_none_is_left_out(values, told):
    values = {**values, "losses": [], "teacher": None, "steps": 9, "checkpoint_every": 4}
    train(values, stop=6)
    assert steps_of(told) == [1, 2, 3, 4, 5, 6]
    with open(f"{values['run']}/{FILE}", "a") as file:
        file.write('{"tracker": "wandb", "kind": "trai')  # half a line of a kill
    trainer = train(values, stop=7)
    assert trainer.first_step == 4
    train(values)
    assert steps_of(told) == list(range(1, 10))
    logged = {row["step"]: row for row in trainer.folder.rows("metrics.jsonl")}
    for row in told():
        if "step" in row:
            assert row["values"] == {k: v for k, v in logged[row["step"]].items() if k != "step"}


def test_the_config_is_stored_flat(values, told):
    trainer = train({**values, "steps": 1})
    (stored,) = [row["config"] for row in told() if "config" in row]
    assert stored["optimizer.lr"] == 1e-2
    assert stored["losses.1.name"] == "shd"
    assert stored["losses.1.weight"] == 0.5
    assert stored["student.num_layers"] == 4
    assert stored["task.mask_ratio"] == trainer.config.task.options["mask_ratio"] == 0.3
    assert all(value is None or isinstance(value, (bool, int, float, str)) for value in stored.values())


def test_lists_and_empty_things_are_texts():
    found = hyperparameters({"a": {"b": [1, 2], "c": []}, "d": {}, "e": [{"x": None}, {"y": {0: 1.5}}]})
    assert found == {"a.b": "[1, 2]", "a.c": "[]", "d": "{}", "e.0.x": None, "e.1.y.0": 1.5}


def test_another_tracker_and_evaluations_are_told_their_own(values, told):
    trainer = train({**values, "losses": [], "teacher": None, "steps": 2})
    folder = RunFolder(trainer.config.run)
    folder.log(FILE, {"tracker": "tensorboard", "kind": "training", "step": 7})
    for _ in range(2):
        tracker = Tracker(trainer.config, folder, Accelerator(cpu=True, log_with="wandb"))
        for kind, step in (("training", 2), ("training", 3), ("evaluation", 2)):
            tracker.log(kind, {kind: 1.0}, step)
    counts = Counter((row["step"], *row["values"]) for row in told() if row.get("step") and len(row["values"]) == 1)
    assert counts == {(3, "training"): 1, (2, "evaluation"): 1}


def test_without_a_tracker_nothing_is_written(values, told):
    trainer = train({**values, "losses": [], "teacher": None, "steps": 1}, tracker=None)
    assert not (trainer.config.run / FILE).exists()


def test_a_tracker_that_cannot_begin_is_a_line(values, told, monkeypatch):
    monkeypatch.setenv("NO_ACCOUNT", "1")
    with pytest.raises(UserError, match=r"^tracker: wandb cannot begin \(api_key not configured run wandb login\)$"):
        train(values)
