"""Laws of a run, whatever its task: the cases of tests/task_cases, each a tiny distillation with SHD and an evaluation.

docs/reliability.md has a table of which of them hold exactly. A row there and a file in tests/task_cases is a task.
"""

import copy
import json
import os
import subprocess
import sys

import pytest
import torch
import yaml
from killing import line_of
from runs import close, contents, drawn_by, rows, run, same_weights
from safetensors.torch import load_file, save_file
from task_cases import CASES, COMMON
from two_process_jobs.tasks import NAMES as SAMPLED
from two_process_jobs.tasks import SLICES

from dit_shd.core.config import make
from dit_shd.core.hashing import sha256
from dit_shd.models import export
from dit_shd.tasks import TASKS
from dit_shd.training.bad_step import read_batches
from dit_shd.training.checkpoint import MANIFEST
from dit_shd.training.config import TrainConfig
from dit_shd.training.dry_run import dry_run
from dit_shd.training.replay import replay
from dit_shd.training.trainer import Trainer, train


@pytest.fixture(scope="module", params=CASES)
def case(request):
    return CASES[request.param]


sampled = pytest.mark.parametrize(
    "case", [name if name in SAMPLED else pytest.param(name, marks=pytest.mark.slow) for name in CASES], indirect=True
)
"""Laws that take seconds: of two tasks always, of the others in the slow tests."""


@pytest.fixture(scope="module")
def folder(case, tmp_path_factory):
    """Of a case's data, teacher and config: one for each case."""
    return tmp_path_factory.mktemp("case")


@pytest.fixture(scope="module")
def made(case, folder):
    """The values of a case's config, its data and its teacher made; config.yaml holds them."""
    values = {**COMMON, **case.values(folder)}
    (folder / "config.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    return values


@pytest.fixture
def values(made, tmp_path):
    """The same, with a run folder of this test."""
    return {**copy.deepcopy(made), "run": str(tmp_path / "run")}


def command(folder, run):
    return ["train", str(folder / "config.yaml"), f"run={run}"]


@pytest.fixture(scope="module")
def straight(made, folder):
    """The run that nobody disturbs: its config and its steps' metrics."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["dit-shd", *command(folder, folder / "straight")])  # records name the command
        return run({**copy.deepcopy(made), "run": str(folder / "straight")})


def test_every_task_is_a_case():
    assert CASES.keys() == set(TASKS.names())


def test_a_run_has_its_terms_and_its_figures(case, straight):
    config, metrics = straight
    assert all(case.terms <= row.keys() for row in metrics)
    assert len({row["loss"] for row in metrics}) == len(metrics)
    figures = rows(config.run, "evaluations.jsonl")
    assert [row["step"] for row in figures] == [2, 4]
    assert all(len(row) > 1 for row in figures)


def test_resuming_is_bit_identical(values, straight, folder, monkeypatch):
    """A step that was taken and lost is taken again; evaluations, exports and logs are those of one run."""
    monkeypatch.setattr(sys, "argv", ["dit-shd", *command(folder, values["run"])])
    broken = make(TrainConfig, values)
    for step in train(broken):
        if step.number == 3:  # its checkpoint is of step 2
            break
    resumed = Trainer.from_config(broken)
    assert resumed.first_step == 2
    list(resumed.run_steps())
    assert contents(straight[0].run) == contents(broken.run)


@sampled
def test_micro_batches_equal_the_batch(values, straight):
    config, metrics = run(values, micro_batch_size=2, validate_every=0)
    close(straight[1], metrics)
    same_weights(straight[0].run, config.run)


def test_bf16_is_close_to_float32(values, straight, case):
    _, metrics = run(values, precision="bf16", steps=1, validate_every=0)
    for term in case.terms:
        assert metrics[0][term] == pytest.approx(straight[1][0][term], rel=0.1, abs=0.01)


@sampled
def test_a_run_can_be_counted_and_tried(values):
    counted = dry_run(make(TrainConfig, {**values, "validate_every": 0}))
    assert counted.operations.total > 0
    assert counted.measured.seconds > 0


def test_what_is_drawn_is_of_step_and_place_alone(straight):
    trainer = Trainer.from_config(straight[0])
    trainer.folder.release()
    whole = drawn_by(trainer, 3, range(8))
    parts = [drawn_by(trainer, 3, positions) for positions in (range(3), range(3, 8))]
    for name, batch in whole.items():
        for field, value in vars(batch).items():
            halves = [getattr(part[name], field) for part in parts]
            if isinstance(value, torch.Tensor):
                assert torch.equal(value, torch.cat(halves)), field
    assert line_of(3, range(8), whole.values()) == line_of(3, range(8), drawn_by(trainer, 3, range(8)).values())


# Numbers that go bad


def test_a_bad_step_is_kept_and_left_out(values, case):
    trainer = Trainer.from_config(make(TrainConfig, {**values, "skip_bad_steps": 1, "steps": 2, "validate_every": 0}))
    handle = trainer.student.get_submodule(case.broken).register_forward_hook(lambda _, args, out: out * float("nan"))
    before = {k: v.clone() for k, v in trainer.student.state_dict().items()}
    steps = trainer.run_steps()
    assert next(steps).metrics["skipped_steps"] == 1
    assert all(torch.equal(before[k], v) for k, v in trainer.student.state_dict().items())
    file = trainer.folder.path / "bad_steps" / "step_00000001.safetensors"
    kept = {batch.pass_name: batch for batch in read_batches(file, trainer.task.batch_type)}
    wanted = drawn_by(trainer, 0, range(8))
    assert kept.keys() == wanted.keys()
    for name, batch in wanted.items():
        for field, value in vars(batch).items():
            other = getattr(kept[name], field)
            assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other
    handle.remove()
    assert "loss" in next(steps).metrics
    assert export.exported_step(trainer.folder.student) == 2
    list(steps)


@sampled
def test_a_bad_step_can_be_replayed(values, case):
    config, _ = run(values, steps=2, validate_every=0)
    assert (replay(config.run, 3).terms, replay(config.run, 3).layer) == ((), None)
    folder = config.run / "checkpoints" / "step_00000002"
    tensors = load_file(folder / "distiller.safetensors")
    inside = next(k for k in tensors if k.startswith(f"student.{case.broken}.") and k.endswith("bias"))
    tensors[inside][0] = float("nan")
    save_file(tensors, folder / "distiller.safetensors")
    (folder / MANIFEST).write_text(json.dumps({f.name: sha256(f) for f in folder.iterdir() if f.name != MANIFEST}))
    found = replay(config.run, 3)
    assert found.layer.startswith(f"student.{case.broken}")
    assert found.terms


# Kills


def forked(lives, root, tmp_path, order):
    """Lives one after the other, each a fork of one warm process; their exit codes."""
    file = tmp_path / "lives.json"
    file.write_text(json.dumps(lives))
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "ORDER": str(order)}
    command = [sys.executable, str(root / "tests" / "killing.py"), str(file)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.slow  # a run of diffusion that is killed is that of tests/training/test_kill.py
@pytest.mark.parametrize(("case", "kills"), [(name, kills) for name in CASES for kills in (1, 8)], indirect=["case"])
def test_killed_anywhere_a_run_ends_as_if_never(straight, folder, root, tmp_path, kills):
    """In steps, saves, exports and evaluations; what is drawn at a place is always the same."""
    phases = ["step", "save", "validation", "export"]
    deaths = [{"phase": phases[i % 4], "call": 2 if i == 0 else 1, "delay": 0.003 * (i // 4)} for i in range(kills)]
    lives = [{"argv": command(folder, tmp_path / "run"), "kill": kill} for kill in [*deaths, None]]
    codes = forked(lives, root, tmp_path, tmp_path / "order")
    assert codes[0] == -9 and codes[-1] == 0, codes
    assert contents(straight[0].run) == contents(tmp_path / "run")
    lines = set((tmp_path / "order").read_text().splitlines())
    assert len({line.rsplit(" ", 1)[0] for line in lines}) == len(lines), "one place, two draws"


# Two processes

of_two = pytest.mark.parametrize(
    "case",
    [
        pytest.param(name, marks=pytest.mark.two_processes("tasks"))
        if name in SAMPLED
        else pytest.param(name, marks=[pytest.mark.two_processes("other_tasks"), pytest.mark.slow])
        for name in CASES
    ],
    indirect=True,
)


@pytest.fixture
def runs_of_two(by_two, case):
    """The folder of a case's runs."""
    return by_two / next(name for name in CASES if CASES[name] is case)


@of_two
def test_two_processes_equal_one(runs_of_two, straight):
    close(straight[1], rows(runs_of_two / "ddp"))
    same_weights(straight[0].run, runs_of_two / "ddp")
    one, two = (rows(path, "evaluations.jsonl") for path in (straight[0].run, runs_of_two / "ddp"))
    close(one, two, rel=0.05)


@of_two
@pytest.mark.skipif(not SLICES, reason="this torch slices on GPUs only")
def test_sharded_training_equals_whole_training(runs_of_two, straight):
    close(straight[1], rows(runs_of_two / "fsdp2"))
    same_weights(straight[0].run, runs_of_two / "fsdp2")


@of_two
def test_the_number_of_processes_may_change_when_a_run_is_resumed(runs_of_two, straight):
    """Two processes to step 2, one from there."""
    values = json.loads((runs_of_two / "values.json").read_text())
    config, metrics = run({**values, "run": str(runs_of_two / "begun")})
    assert [row["step"] for row in metrics] == [3, 4]
    close(straight[1], rows(config.run))
    same_weights(straight[0].run, config.run)
