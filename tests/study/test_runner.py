"""A study from its file to its rows: once each, on after a kill, failures kept."""

import json
import signal
import subprocess
import sys
import time

import pytest
from studies import LOSSES, STAND_IN, calls, run

from dit_shd.cli.program import main
from dit_shd.core.errors import UserError
from dit_shd.core.yaml_files import read_yaml
from dit_shd.study.results import read_results
from dit_shd.study.runner import Runner


def lasting(value):
    """Both variants of the grid, the second with a word that the stand-in knows."""
    return {"loss": {"output": {}, "shd": {"tracker": value, "losses": LOSSES}}}


def test_a_second_study_in_the_folder_is_refused(study, tmp_path):
    config = study()
    (tmp_path / "broken.yaml").write_text("a: [")
    (tmp_path / "second.yaml").write_text(f"base: {config.study.name}\ntitle: another\n")
    with pytest.raises(UserError, match=r"second\.yaml is another study in the same folder.*a folder of its own"):
        run(config)
    assert not calls()
    (tmp_path / "second.yaml").unlink()
    assert len(run(config)[0]) == 4


def test_a_folder_of_cells_that_cannot_be_made_is_one_line(study, tmp_path):
    (tmp_path / "cells").write_text("a file")
    with pytest.raises(UserError, match=r"cells cannot be made a folder \(File exists\); name another with"):
        run(study())
    assert not calls()


def test_every_cell_is_a_row_and_nothing_runs_twice(study, tmp_path):
    results, _ = run(study())
    rows = read_results(tmp_path / "results.jsonl")
    assert [(row.cell, row.variant, row.seed) for row in rows] == [
        (0, "output", 1), (1, "shd", 1), (2, "output", 2), (3, "shd", 2),
    ]  # fmt: skip
    assert {name: row.figures["FD(x)"] for name, row in results.items()} == {
        "output-seed1": 1, "output-seed2": 2, "shd-seed1": 6, "shd-seed2": 7,
    }  # fmt: skip
    row = results["shd-seed2"]
    assert row.done and row.config_sha256 and row.versions["torch"]
    assert row.seconds.keys() == row.cpu_seconds.keys() == {"train", "sample", "evaluate-first"}
    assert row.memory_mib > 1 and 0 < row.cpu_hours < 1
    assert row.curve["step"][-1] == 100 and 40 < len(row.curve["step"]) <= 60
    assert row.curve.keys() == {"step", "plain/noise"}
    assert sorted(calls()) == ["evaluate"] * 4 + ["sample"] * 4 + ["statistics"] + ["train"] * 4
    record = json.loads((tmp_path / "cells" / "shd-seed2" / "first.json").read_text())
    assert record["reference"]["sha256"] == "statistics"
    before = (tmp_path / "results.jsonl").read_bytes()
    run(study())
    assert len(calls()) == 13 and (tmp_path / "results.jsonl").read_bytes() == before


def test_a_figure_that_decides_and_that_no_cell_has_is_said_once_and_at_once(study):
    results, said = run(study(figure="FD(digits)"))
    lines = [i for i, line in enumerate(said) if "study.figure" in line]
    first = next(i for i, line in enumerate(said) if line.startswith("[1/4]"))
    assert lines == [first + 1] and len(results) == 4
    assert "wanted 'FD(digits)', which decides, found FD(x), IS(x), IS(x) std in output-seed1" in said[first + 1]
    assert not any("study.figure" in line for line in run(study(figure="FD(x)"))[1])


def test_figures_of_an_earlier_step_than_the_last_are_noted(study, capsys):
    """Of an evaluation during training, whose period need not divide the steps."""
    note = "note: Figures of training/... are of step 3 of 4, the last that validate_every came by"
    for steps, noted in ((3, False), (4, True)):
        run(study({"cell": 0}, evaluators={}, settings={"steps": steps, "validate_every": 3}))
        assert main(["study", "study.yaml", "run=false"]) == 0
        said = capsys.readouterr().out
        assert "training/FD(x)" in said and (note in said) == noted


def test_single_cells_and_several_at_once_give_the_same_rows(study, tmp_path):
    def plain(results):
        return {name: (row.sha256, row.figures) for name, row in results.items()}

    wanted, _ = run(study())
    (tmp_path / "results.jsonl").unlink()
    together, _ = run(study(options={"workers": 4, "cells": tmp_path / "elsewhere"}))
    (tmp_path / "results.jsonl").unlink()
    for number in (3, 0, 2, 1):
        one_by_one, _ = run(study(options={"cell": number, "cells": tmp_path / "one"}))
    places = {"elsewhere", "one", "cells"}
    assert places <= {path.name for path in tmp_path.iterdir()}
    for results in (together, one_by_one):
        assert plain(results) == plain(wanted)
        assert {row.config_sha256 for row in results.values()} == {row.config_sha256 for row in wanted.values()}
    (tmp_path / "results.jsonl").unlink()
    shown, _ = run(study(options={"run": False, "cells": tmp_path / "one"}))
    assert shown == one_by_one, "rows are taken from where the cells are"
    assert run(study(options={"run": False, "cells": tmp_path / "nowhere"}))[0] == shown
    with pytest.raises(UserError, match="wanted a number from 0 to 3, found 4"):
        run(study(options={"cell": 4}))


def test_a_failure_is_a_row_and_the_others_go_on(study):
    results, said = run(study(grid=lasting("fails")))
    failed = results["shd-seed1"]
    assert failed.status == "failed" and not failed.figures
    assert failed.error == "train: dit-shd train: data fails: wanted data, found none (exit code 2)"
    assert results["output-seed2"].done
    assert any("shd-seed1: failed: train:" in line for line in said)
    done = len(calls())
    assert run(study(grid=lasting("fails")))[0] == results
    assert len(calls()) == done, "a failure is an end"


def test_a_cell_that_can_have_no_row_is_an_error(study, tmp_path, capsys):
    """As where a power cut has left a damaged file: it is no other process that is at it."""
    (tmp_path / "cells" / "shd-seed1" / "run").mkdir(parents=True)
    (tmp_path / "cells" / "shd-seed1" / "train.yaml").write_text("{")
    assert main(["study", str(study().study)]) == 2
    assert "shd-seed1: " in (line := capsys.readouterr().err.splitlines()[-1]) and "not valid YAML" in line
    assert calls().count("train") == 3


def test_the_command_ends_in_an_error_where_a_cell_failed(study, capsys):
    """Or a queue, and a script's &&, take it for done."""
    words = ["study", str(study(grid=lasting("fails")).study)]
    name, number = "shd-seed1", [cell.name for cell in Runner(study(grid=lasting("fails"))).cells].index("shd-seed1")
    for _ in range(2):
        assert main([*words, f"cell={number}"]) == 2
        assert f"cell {number}, {name}: failed: train: dit-shd train: data fails" in capsys.readouterr().err
    other = [cell.number for cell in Runner(study(grid=lasting("fails"))).cells if cell.name == "output-seed2"]
    assert main([*words, f"cell={other[0]}"]) == 0
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert "4 of 4 cells have ended" in out and "the page:" in out
    assert err.splitlines()[-1].startswith(f"dit-shd study: 2 of 4 cells failed; cell {number}, {name}: failed:")
    assert main([*words, "run=false"]) == 0


def test_a_cell_that_failed_is_tried_again_when_asked_to_and_the_failure_stays(study):
    run(study(grid=lasting("fails_once")))
    results, _ = run(study(grid=lasting("fails_once"), options={"retry": True}))
    assert all(row.done for row in results.values())
    assert len(results["shd-seed1"].failures) == 1 and "data fails" in results["shd-seed1"].failures[0]
    assert calls().count("train") == 6


def test_rows_of_another_config_are_kept_and_not_shown(study, tmp_path):
    run(study())
    runner = Runner(study(sampling={"steps": 7}))
    progress = runner.progress()
    assert not progress.results and progress.others == 4
    runner.run()
    assert len(read_results(tmp_path / "results.jsonl")) == 8


def test_a_change_of_training_begins_anew_and_keeps_the_earlier_runs(study, tmp_path):
    run(study())
    results, _ = run(study(settings={"steps": 7}))
    assert [row.status for row in results.values()] == ["done"] * 4
    for cell in results:
        new, (kept,) = tmp_path / "cells" / cell / "run", (tmp_path / "cells" / cell).glob("run-*")
        assert read_yaml(new / "config.yaml")["steps"] == 7
        assert "steps" not in read_yaml(kept / "config.yaml")
    assert len(read_results(tmp_path / "results.jsonl")) == 8


def test_training_costs_what_it_took_when_samples_are_scored_in_another_way_later(study, tmp_path):
    """A run that is done is not looked at again, which would cost its start."""
    run(study({"cell": 0}))
    stages = tmp_path / "cells" / "output-seed1" / "stages.json"
    known = json.loads(stages.read_text())
    known["usage"]["train"]["cpu_seconds"] = 1000.0
    stages.write_text(json.dumps(known))
    row = run(study({"cell": 0}, sampling={"steps": 7}))[0]["output-seed1"]
    assert row.cpu_seconds["train"] == 1000 and row.cpu_seconds["sample"] < 100
    assert (calls().count("train"), calls().count("sample")) == (1, 2)
    row = run(study({"cell": 0}, settings={"steps": 7}))[0]["output-seed1"]
    assert row.cpu_seconds["train"] < 100 and calls().count("train") == 2


@pytest.mark.parametrize("changes", [{}, {"sampling": {"steps": 7}}, {"settings": {"steps": 7}}])
def test_what_was_killed_is_run_again_and_its_cost_is_said_to_be_unknown(changes, study, tmp_path, capsys):
    """Of a first training, of one whose samples were wanted otherwise later, and of another one after it."""
    if changes:
        run(study({"cell": 0}))
    runner = Runner(study({"cell": 0}, **changes), print)
    really = runner.commands.run

    def killed(words, log):
        if log.stem in ("train", "sample"):
            raise KeyboardInterrupt  # nothing is written any more
        return really(words, log)

    runner.commands.run = killed
    with pytest.raises(KeyboardInterrupt):
        runner.run()
    (tmp_path / "cells" / "output-seed1" / "run").mkdir(exist_ok=True)
    row = run(study({"cell": 0}, **changes))[0]["output-seed1"]
    stage = "sample" if "sampling" in changes else "train"
    assert row.uncounted == [stage] and row.done
    assert calls().count("train") == 1 + ("settings" in changes)
    assert main(["study", "study.yaml", "run=false"]) == 0
    assert f"note: Costs lack what ran until it was killed: output-seed1 ({stage})." in capsys.readouterr().out


def test_two_trainings_that_were_cut_off_in_turn_keep_their_runs(study, tmp_path):
    for number, steps in enumerate((7, 8, 7, 8)):
        run(study({"cell": 0}, settings={"steps": steps}))
        (tmp_path / "results.jsonl").unlink()
        assert len(list((tmp_path / "cells" / "output-seed1").glob("run-*"))) == number


def test_no_cell_begins_beyond_the_budget(study):
    results, said = run(study(cpu_hours=1e-9))
    assert list(results) == ["output-seed1"]
    assert "no other cell begins" in said[-1]


def test_a_signal_ends_the_commands_and_the_same_study_goes_on(study, tmp_path, root):
    config = study(grid=lasting("lasts"), evaluators={}, settings={"validate_every": 1})
    launcher = f"launcher={sys.executable} {STAND_IN}"
    words = [sys.executable, "-m", "dit_shd", "study", str(config.study), launcher, "workers=2"]
    environment = {"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)
    begun = tmp_path / "cells" / "shd-seed1" / "begun"
    deadline = time.monotonic() + 60
    while not begun.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 143, errors
    assert "the same command goes on" in errors
    assert all(row.variant == "output" for row in read_results(tmp_path / "results.jsonl"))
    (tmp_path / "go").touch()
    results, _ = run(config)
    assert len(results) == 4 and all(row.done for row in results.values())
    assert results["shd-seed1"].seconds["train"] >= 0 and not results["shd-seed1"].failures


def test_a_cell_that_another_process_has_run_meanwhile_is_passed_over(study, monkeypatch):
    """Each of two had run again what failed in the other, though nobody had asked for it, and added up its cost."""
    shared, ran = Runner._shared, []

    def after_another(self):
        monkeypatch.setattr(Runner, "_shared", shared)
        ran.append(run(study(grid=lasting("fails")))[0])
        return shared(self)

    monkeypatch.setattr(Runner, "_shared", after_another)
    assert run(study(grid=lasting("fails")))[0] == ran[0] and ran[0]["shd-seed1"].status == "failed"


@pytest.mark.parametrize("held", ["run/.lock", ".samples.npz.lock"])
def test_what_a_killed_study_left_at_work_is_left_alone(held, study, tmp_path, root):
    """Of training and of sampling, which had been a failed cell."""
    file = tmp_path / "cells" / "shd-seed1" / held
    file.parent.mkdir(parents=True)
    code = f"""
from pathlib import Path
from dit_shd.core.lock import Lock
lock = Lock(Path({str(file)!r}), "dit-shd train")
print("held", flush=True)
input()
"""
    words = [sys.executable, "-c", code]
    holder = subprocess.Popen(words, env={"PYTHONPATH": str(root)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"held\n"
    results, said = run(study())
    holder.communicate(b"\n", timeout=30)
    assert list(results) == ["output-seed1", "output-seed2", "shd-seed2"]
    assert any("cell 1, shd-seed1: left out:" in line and "in use by" in line for line in said)
    assert len(run(study())[0]) == 4
