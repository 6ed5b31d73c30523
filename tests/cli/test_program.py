"""The command line as a user meets it: exit codes, one-line errors, help, and a pickle that must not run."""

import logging
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml

from dit_shd.cli.commands import COMMANDS
from dit_shd.cli.program import main


def write(tmp_path, values, name="config.yaml"):
    (tmp_path / name).write_text(yaml.safe_dump(values))
    return str(tmp_path / name)


def refused(capsys, *argv):
    """The one line of an error, exit code 2."""
    assert main(argv) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    lines = [line for line in lines if "it/s" not in line]
    assert len(lines) == 1, lines
    return lines[0]


def test_train_sample_and_train_again(values, tmp_path, capsys):
    file = write(tmp_path, values)
    assert main(["train", file, "steps=2"]) == 0
    assert "next: dit-shd sample" in capsys.readouterr().out
    assert main(["train", file, "steps=2"]) == 0
    assert "already at step 2 of 2; raise steps" in capsys.readouterr().out
    assert main(["sample", values["run"], "count=4", "steps=2"]) == 0
    assert "samples_4_seed0.npz" in capsys.readouterr().out
    assert "is there already" in refused(capsys, "sample", values["run"], "count=4", "steps=2")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["stepz=3"], "config: unknown key 'stepz', did you mean 'steps'?"),
        (["steps=soon"], "config.steps: wanted a whole number, found 'soon' (str)"),
        (["steps"], "'steps': wanted key=value"),
        (["data.path=none.npz"], "none.npz: no such file"),
        (["teacher=none"], "teacher: wanted a run folder"),
        (["student.num_attention_heads=8"], "student has 8 heads"),
        (["student.patch_size=4", "mask_ratio=null"], "has 4 query and 4 key tokens"),
        (["losses.0.name=somebodys.loss"], "add --trust somebodys"),
    ],
)
def test_errors_of_train_are_one_line(values, tmp_path, capsys, arguments, message):
    assert message in refused(capsys, "train", write(tmp_path, values), *arguments)
    assert not os.path.exists(values["run"])


def test_a_missing_config(capsys):
    assert "nowhere.yaml: wanted a config file (YAML) or the name of an experiment, found nothing" in refused(
        capsys, "train", "nowhere.yaml"
    )


def test_a_pickle_that_wants_to_execute_code_does_not(values, tmp_path, capsys):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    torch.save({"x_embedder.proj.weight": Bomb()}, tmp_path / "bomb.pt")
    line = refused(capsys, "train", write(tmp_path, values), f"teacher={tmp_path / 'bomb.pt'}")
    assert "refused, because loading it would execute code" in line
    assert not (tmp_path / "exploded").exists()
    assert not os.path.exists(values["run"])


def test_checkpoints_that_are_none(values, tmp_path, capsys):
    file = write(tmp_path, values)
    for name, content in (("a.pt", b"junk"), ("b.safetensors", b"junk"), ("c.pt", b"")):
        (tmp_path / name).write_bytes(content)
        assert name in refused(capsys, "train", file, f"teacher={tmp_path / name}")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pt")
    assert "other.pt: not a state dict of DiT or MDTv2" in refused(
        capsys, "train", file, f"teacher={tmp_path / 'other.pt'}"
    )
    torch.save([1, 2], tmp_path / "list.pt")
    assert "wanted a state dict" in refused(capsys, "train", file, f"teacher={tmp_path / 'list.pt'}")


def test_a_folder_of_another_run_is_left_alone(values, tmp_path, capsys):
    file = write(tmp_path, values)
    assert main(["train", file, "steps=1"]) == 0
    capsys.readouterr()
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")}
    assert "already holds a run with another config" in refused(capsys, "train", file, "steps=1", "seed=1")
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")} == before


def test_a_public_checkpoint_file_is_a_teacher(values, tmp_path, teacher, capsys):
    from dit_shd.models.loading import load

    torch.save(load(teacher).to_public(), tmp_path / "public.pt")
    assert main(["train", write(tmp_path, values), "steps=1", f"teacher={tmp_path / 'public.pt'}"]) == 0


def test_statistics_then_evaluate_two_files(tmp_path, capsys):
    r = np.random.default_rng(0)
    for name in ("a=1.npz", "b.npz", "real.npz"):
        np.savez(tmp_path / name, r.integers(0, 256, (30, 28, 28, 1), dtype=np.uint8))
    known, samples = str(tmp_path / "known.npz"), [str(tmp_path / name) for name in ("a=1.npz", "b.npz")]
    assert main(["statistics", str(tmp_path / "real.npz"), f"out={known}", "features=digits", "keep_images=30"]) == 0
    assert f"reference={known} features=digits" in capsys.readouterr().out
    assert main(["evaluate", samples[0], "features=digits", samples[1], f"reference={known}"]) == 0
    printed = capsys.readouterr().out
    assert "2 files of 30 images" in printed
    assert "ADM-comparable: no" in printed
    assert "is there already" in refused(capsys, "statistics", samples[0], f"out={known}", "features=digits")
    assert "wanted SAMPLES... (npz or folder of images" in refused(
        capsys, "evaluate", f"reference={known}", "features=digits"
    )


def test_scripts_return_the_exit_code(root, tmp_path):
    """From the scripts themselves, run as programs from another folder."""
    environment = {**os.environ, "PYTHONPATH": str(root)}
    for script in ("train_dit.py", "sampling/sample_dit.py", "eval/evaluate_dit.py"):
        done = subprocess.run(
            [sys.executable, root / script, "missing"], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 2, done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
        assert "Traceback" not in done.stderr


def test_what_libraries_log_while_they_are_imported_is_kept_back(monkeypatch, caplog, capsys):
    find = type(COMMANDS).find

    def noisy(self, name):
        logging.getLogger("some.library").warning("an optional package of mine is missing")
        return find(self, name)

    monkeypatch.setattr(type(COMMANDS), "find", noisy)
    assert main(["configs"]) == 0
    assert "digits_shd" in capsys.readouterr().out and "optional package" not in caplog.text
    logging.getLogger("some.library").warning("later it counts")
    assert "later it counts" in caplog.text


def test_what_works_in_one_process_is_refused_under_a_launcher(monkeypatch, capsys):
    """Each process had done all of it, and written the same files."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert main(["losses"]) == 2
    assert "the launcher started 2 processes, and dit-shd losses works in one" in capsys.readouterr().err
