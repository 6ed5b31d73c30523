"""Samples and figures during training."""

import json
import shutil
from datetime import timedelta

import numpy as np
import pytest
from runs import rows, run

from dit_shd.core.config import make
from dit_shd.core.errors import UserError
from dit_shd.training.config import TrainConfig
from dit_shd.training.trainer import Trainer


@pytest.fixture
def digits(values):
    """Plain training on digits, of which there are reference images."""
    student = {**values["student"], "sample_size": 28, "patch_size": 7, "num_classes": 10}
    return {**values, "data": "digits", "student": student, "teacher": None, "losses": [], "batch_size": 4}


def test_samples_and_figures_on_a_schedule(digits):
    """What is finished is not done again: a run that repeats steps after a kill finds its figures."""
    evaluation = {"every": 2, "count": 12, "steps": 4, "reference": "digits:validation", "features": "digits"}
    evaluation["evaluate"] = {"metrics": ["frechet"], "page": False}
    config, _ = run({**digits, "evaluation": evaluation}, steps=4)
    found = rows(config.run, "evaluations.jsonl")
    assert [row["step"] for row in found] == [2, 4]
    assert all(np.isfinite(row["FD(digits)"]) for row in found)
    kept = sorted(path.name for path in (config.run / "evaluations").iterdir())
    assert kept == sorted(f"step_0000000{n}.{end}" for n in (2, 4) for end in ("json", "png", "results.json"))
    shutil.rmtree(config.run / "checkpoints" / "step_00000004")
    before = (config.run / "evaluations" / "step_00000004.results.json").stat().st_mtime_ns
    run({**digits, "evaluation": evaluation}, steps=4)
    assert rows(config.run, "evaluations.jsonl") == found
    assert (config.run / "evaluations" / "step_00000004.results.json").stat().st_mtime_ns == before


def test_another_evaluation_does_not_take_the_figures_of_the_first(digits, caplog):
    """Where a run repeats steps; and it is said that figures of both are in the log."""
    evaluation = {"every": 2, "count": 12, "steps": 4, "reference": "digits:validation", "features": "digits"}
    evaluation["evaluate"] = {"metrics": ["frechet"]}
    config, _ = run({**digits, "evaluation": evaluation}, steps=4)
    before = rows(config.run, "evaluations.jsonl")
    shutil.rmtree(config.run / "checkpoints" / "step_00000004")
    caplog.clear()
    run({**digits, "evaluation": {**evaluation, "count": 20}}, steps=4)
    after = rows(config.run, "evaluations.jsonl")
    assert after[0] == before[0] and after[1]["FD(digits)"] != before[1]["FD(digits)"]
    record = json.loads((config.run / "evaluations" / "step_00000004.results.json").read_text())
    assert record["samples"]["n"] == 20
    assert "task.evaluation: count changed: figures up to step 4 are of another evaluation" in caplog.text
    shutil.rmtree(config.run / "checkpoints" / "step_00000004")
    again = {**evaluation, "count": 20, "reference": "digits:train"}
    run({**digits, "evaluation": again}, steps=4)
    assert rows(config.run, "evaluations.jsonl")[1]["FD(digits)"] != after[1]["FD(digits)"]


def test_figures_may_be_asked_for_later(digits):
    """Where the grid of the step is there already, without figures."""
    evaluation = {"every": 2, "count": 12, "steps": 4}
    run({**digits, "evaluation": evaluation}, steps=2)
    evaluation |= {"reference": "digits:validation", "features": "digits", "evaluate": {"metrics": ["frechet"]}}
    config, _ = run({**digits, "evaluation": evaluation}, steps=2)
    assert [row["step"] for row in rows(config.run, "evaluations.jsonl")] == [2]
    wrong = {**evaluation, "count": 1, "evaluate": {"metrics": ["frechet"]}}
    with pytest.raises(UserError, match="wanted at least 2 images, found 1 in evaluation"):
        run({**digits, "evaluation": wrong})


def test_processes_wait_for_the_one_that_scores(values):
    """NCCL's 10 minutes are over before 50,000 images are."""
    handler = Trainer.from_config(make(TrainConfig, values)).accelerator.init_handler
    assert handler.timeout >= timedelta(hours=1)


def test_a_run_that_is_asked_to_stop_leaves_the_evaluation_for_later(values):
    evaluation = {"every": 2, "count": 3, "steps": 2}
    trainer = Trainer.from_config(make(TrainConfig, {**values, "evaluation": evaluation}))
    for step in trainer.run_steps():
        if step.number == 1:
            trainer.stop.request()
    assert step.number == 2
    assert not (trainer.config.run / "evaluations").exists()
    run({**values, "evaluation": evaluation}, steps=2)
    assert (trainer.config.run / "evaluations" / "step_00000002.png").exists()


def test_what_is_evaluated_is_saved_first(values):
    """An evaluation may be long, and a job that is told to stop in it killed before it ends."""
    plain = {"losses": [], "teacher": None, "validate_every": 2, "checkpoint_every": 100}
    trainer, saved = Trainer.from_config(make(TrainConfig, {**values, **plain})), []
    trainer.task.evaluate = lambda *_: saved.append({folder.name for folder in trainer.folder.checkpoints()})
    list(trainer.run_steps())
    assert saved == [{"step_00000002"}, {"step_00000002", "step_00000004"}]


def test_grids_alone_need_no_reference(values):
    config, _ = run({**values, "evaluation": {"every": 2, "count": 3, "steps": 2}}, steps=2)
    assert (config.run / "evaluations" / "step_00000002.png").stat().st_size > 100
    assert not (config.run / "evaluations.jsonl").exists()
