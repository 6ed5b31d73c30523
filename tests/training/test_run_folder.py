"""The run folder: saves that are whole or not there, damage that is recognised, what is kept and what is dropped."""

import json
import os
import pickle
import random
import resource
import shutil
import subprocess
import sys

import pytest
import torch
from runs import contents, run

from dit_shd.core import files, hashing
from dit_shd.core.config import make, resumable_keys
from dit_shd.core.errors import UserError
from dit_shd.core.lock import LOCK, Lock
from dit_shd.core.yaml_files import dump
from dit_shd.training import checkpoint, run_folder
from dit_shd.training.checkpoint import MANIFEST
from dit_shd.training.config import TrainConfig
from dit_shd.training.run_folder import RunFolder

OPTIMIZER = {
    "state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.arange(6.0), "seen": 4}},
    "param_groups": [{"lr": 0.1, "betas": [0.9, 0.99], "params": [0]}],
}


def save(folder, step, keep=9, **options):
    tensors = {"distiller": {"w": torch.full((40,), float(step))}, "ema_0.9": {"w": torch.zeros(3)}}
    folder.save(step, tensors, OPTIMIZER, {"skipped_steps": 0}, keep, **options)


@pytest.fixture
def folder(tmp_path):
    return RunFolder(tmp_path / "run")


def steps(folder):
    return [checkpoint.step_of(path) for path in folder.checkpoints()]


def test_a_checkpoint_gives_back_what_was_saved(folder):
    assert folder.load() is None
    save(folder, 7)
    loaded = folder.load()
    assert loaded["step"] == 7
    assert torch.equal(loaded["distiller"]["w"], torch.full((40,), 7.0))
    torch.testing.assert_close(loaded["optimizer"], OPTIMIZER, rtol=0, atol=0)


def damages(folder):
    """Every file of a checkpoint: gone, cut short, emptied, longer, and with a bit flipped here and there."""
    draw = random.Random(0)
    for file in sorted(folder.iterdir()):
        data = file.read_bytes()
        yield file, None
        yield file, data[: len(data) // 2]
        yield file, b""
        yield file, data + b"\n" if file.name != MANIFEST else data + b"}"
        for at in [0, 9, len(data) - 1, *(draw.randrange(len(data)) for _ in range(8))]:
            yield file, data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :]


def test_any_damage_to_the_newest_is_told_and_the_one_before_is_used(folder, caplog):
    save(folder, 2)
    save(folder, 10)
    shutil.copytree(folder.newest, folder.path / "copy")
    count = 0
    for file, data in list(damages(folder.newest)):
        caplog.clear()
        file.unlink() if data is None else file.write_bytes(data)
        assert folder.load()["step"] == 2, (file, data)
        line = caplog.messages[0]
        assert len(caplog.messages) == 1
        named = "" if file.name == MANIFEST else file.name  # a name in it may be what is damaged
        assert f"step_00000010: {named}" in line
        aside = folder.path / "checkpoints" / "step_00000010.damaged"
        assert line.endswith(f"kept as {aside.name}, going on from step_00000002")
        assert (aside / file.name).exists() == (data is not None), "set aside, not deleted"
        shutil.rmtree(aside)
        shutil.copytree(folder.path / "copy", folder.path / "checkpoints" / "step_00000010")
        count += 1
    assert count > 50
    assert folder.load()["step"] == 10


def test_damaged_ones_are_all_kept_and_without_a_sound_one_nothing_begins_anew(folder):
    for step in (2, 4):
        save(folder, step)
        (folder.newest / "state.json").write_text("{}")
    with pytest.raises(
        UserError, match=r"no checkpoint is sound \(step_00000004: state.json is damaged; step_00000002"
    ):
        folder.load()
    assert steps(folder) == [2, 4], "a second try must not find an empty folder"
    for path in folder.checkpoints():
        path.rename(path.with_name(path.name + ".damaged"))
    with pytest.raises(UserError, match=r"no checkpoint is sound .* or move .* away to begin anew"):
        folder.load()
    save(folder, 6)
    for _ in range(2):
        save(folder, 8)
        (folder.newest / MANIFEST).unlink()
        assert folder.load()["step"] == 6
    names = {path.name for path in (folder.path / "checkpoints").iterdir()}
    assert {"step_00000008.damaged", "step_00000008.damaged1"} < names


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["optimizer.safetensors", "optimizer.pt", "state.json", MANIFEST])
@pytest.mark.parametrize("honest", [True, False], ids=["in the manifest", "unannounced"])
def test_a_pickle_in_a_checkpoint_is_never_executed(folder, tmp_path, name, honest):
    save(folder, 2)
    save(folder, 4)
    (folder.newest / name).write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    if honest and name != MANIFEST:
        sums = {f.name: hashing.sha256(f) for f in folder.newest.iterdir() if f.name != MANIFEST}
        (folder.newest / MANIFEST).write_text(json.dumps(sums))
    try:
        assert folder.load()["step"] in (2, 4)
    except UserError as error:
        assert "step_00000004: not a checkpoint" in str(error)
    assert not (tmp_path / "exploded").exists()


def test_lines_that_are_no_rows_are_passed_over(folder):
    folder.path.mkdir(exist_ok=True)
    (folder.path / "evaluations.jsonl").write_bytes(
        b'{"step": 2, "FD": 1.0}\n{"step": 2, "F\n\xff\xfe\n[1]\n{"FD": 1.0}\n{"step": 4'
    )
    assert folder.rows("evaluations.jsonl") == [{"step": 2, "FD": 1.0}]


def test_a_config_that_somebody_wrote_is_kept_beside_the_resolved_one(tmp_path):
    """Its comments and its base were gone."""
    text = dump({"steps": 3})
    (tmp_path / "config.yaml").write_text(f"# my notes\n{text}")
    for _ in range(2):
        RunFolder.open(tmp_path, text).release()
        assert (tmp_path / "config.given.yaml").read_text() == f"# my notes\n{text}"
        assert (tmp_path / "config.yaml").read_text() == text
    RunFolder.open(tmp_path / "new", text).release()
    RunFolder.open(tmp_path / "new", text).release()
    assert not (tmp_path / "new" / "config.given.yaml").exists()


def test_what_others_put_into_a_checkpoint_is_not_of_it(folder):
    """As the files in which macOS keeps attributes, on disks that have none."""
    save(folder, 2)
    before = folder.load()
    (folder.newest / "._distiller.safetensors").write_bytes(b"attributes")
    assert folder.load().keys() == before.keys()


@pytest.mark.parametrize(
    ("keep", "every", "left"), [(1, 0, [60]), (2, 0, [50, 60]), (2, 20, [20, 40, 50, 60]), (1, 7, [60])]
)
def test_what_is_dropped(folder, keep, every, left):
    for step in range(10, 70, 10):
        save(folder, step, keep=keep, keep_every=every)
        assert folder.load()["step"] == step, "never the last good one"
    assert steps(folder) == left


@pytest.mark.parametrize("fails", ["rmtree", "replace"])
def test_an_old_checkpoint_that_cannot_be_removed_ends_nothing(folder, monkeypatch, caplog, fails):
    """Its files may be open elsewhere on a network disk."""
    RunFolder.open(folder.path, "steps: 3\n").release()
    real = {"rmtree": shutil.rmtree, "replace": os.replace}[fails]

    def busy(path, *rest, **options):
        if "step_00000001" in str(path):
            raise OSError(16, "Device or resource busy", str(path))
        real(path, *rest, **options)

    save(folder, 1)
    monkeypatch.setattr(shutil if fails == "rmtree" else os, fails, busy)
    save(folder, 2, keep=1)
    assert "step_00000001: cannot be removed (Device or resource busy); it stays, and is not needed" in caplog.text
    caplog.clear()
    again = RunFolder.open(folder.path, "steps: 3\n")
    assert again.load()["step"] == 2 and ("step_00000001" in caplog.text) == (fails == "rmtree")
    again.release()


def test_fewer_steps_than_were_taken_are_refused_before_anything_is_written(folder):
    RunFolder.open(folder.path, "steps: 4\n", ["steps"]).release()
    save(folder, 4)
    before = contents(folder.path)
    with pytest.raises(UserError, match="run: already at step 4, and steps=2 are fewer; raise steps=N to go on"):
        RunFolder.open(folder.path, "steps: 2\n", ["steps"])
    assert contents(folder.path) == before
    for steps in (4, 5):
        RunFolder.open(folder.path, f"steps: {steps}\n", ["steps"]).release()
        assert (folder.path / "config.yaml").read_text() == f"steps: {steps}\n"


def test_steps_are_ordered_as_numbers(folder):
    for step in (99_999_999, 100_000_000, 5):
        save(folder, step)
    assert steps(folder) == [5, 99_999_999, 100_000_000]


def test_a_write_that_fails_leaves_the_last_good_one_and_no_half_file(folder, monkeypatch):
    """The disk fills up at the n-th write, for every n."""
    save(folder, 2)
    before = contents(folder.path)
    for writer in ("save_file", "sync"):
        real = getattr(run_folder, writer) if writer == "save_file" else files.sync
        for n in range(3):
            calls = []

            def fails(*arguments, n=n, calls=calls, real=real, **options):
                calls.append(arguments)
                if len(calls) > n:
                    raise OSError(28, "No space left on device")
                real(*arguments, **options)

            with monkeypatch.context() as patch:
                patch.setattr(run_folder if writer == "save_file" else files, writer, fails)
                with pytest.raises(UserError, match="step_00000004: cannot be written: the disk is full; what is fin"):
                    save(folder, 4)
            assert contents(folder.path) == before
    save(folder, 4)
    assert folder.load()["step"] == 4


FULL = """
import resource, sys
from pathlib import Path
import torch
from dit_shd.training.run_folder import RunFolder
folder = RunFolder(Path(sys.argv[1]))
for step, size in ((1, 10), (2, 100_000)):
    folder.save(step, {"distiller": {"w": torch.zeros(size)}}, {"state": {}, "param_groups": []}, {}, keep=1)
"""


def test_the_kernels_own_limit_of_a_files_size(tmp_path, root):
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))  # noqa: E731
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, preexec_fn=limit,
        env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    assert "step_00000002: cannot be written: File too large" in done.stderr.splitlines()[-1]
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000001"]


def test_leftovers_of_kills_are_tidied_up_and_other_files_are_not(values, tmp_path):
    config = make(TrainConfig, values)
    folder = RunFolder.open(config.run, dump(config), resumable_keys(TrainConfig))
    save(folder, 2)
    folder.release()
    half = folder.path / "checkpoints" / ".step_00000004.dit_shd.part"
    half.mkdir()
    (half / "distiller.safetensors").write_bytes(b"half")
    (folder.path / ".metrics.jsonl.77.dit_shd.part").write_text("half")
    (folder.path / "checkpoints" / "notes.txt").write_text("mine")
    RunFolder.open(config.run, dump(config), resumable_keys(TrainConfig)).release()
    assert {file.name for file in folder.path.iterdir()} == {"config.yaml", "checkpoints"}
    assert {file.name for file in half.parent.iterdir()} == {"step_00000002", "notes.txt"}


def test_a_checkpoint_of_something_else_is_one_line(values):
    config, _ = run(values, steps=2)
    folder = RunFolder(config.run)
    shutil.rmtree(folder.newest)
    save(folder, 2)
    with pytest.raises(UserError, match="step_00000002 does not fit this run"):
        run(values)
    assert steps(folder) == [2]


def test_a_run_whose_folder_was_moved_writes_nothing_more(folder):
    """Not into another run that has begun at its place, nor a folder of checkpoints alone."""
    folder = RunFolder(folder.path, Lock(folder.path / LOCK, "dit-shd train"))
    folder.log("metrics.jsonl", {"step": 1})
    moved = folder.path.rename(folder.path.with_name("moved"))
    for write in (lambda: folder.log("metrics.jsonl", {"step": 2}), lambda: save(folder, 2)):
        with pytest.raises(UserError, match="the folder was moved, removed or replaced while the run was at work"):
            write()
    assert not folder.path.exists() and (moved / "metrics.jsonl").read_text().count("\n") == 1
    folder.lock.release()
