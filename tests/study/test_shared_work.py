"""What cells share, references, teachers, and models that nobody trains: made once, and noted where it changes."""

import json
import os
import shutil
import sys

import numpy as np
import pytest
from studies import calls, run

from dit_shd.cli.program import main
from dit_shd.core.errors import UserError
from dit_shd.study.design import cells_of, read_study
from dit_shd.study.origins import of_program


def test_a_reference_that_was_made_anew_is_not_compared_with_by_its_old_statistics(study, tmp_path, capsys):
    evaluators = {"first": {"features": "digits", "reference": "real.npz"}}
    for number, content in enumerate(("one", "two")):
        (tmp_path / "real.npz").write_text(content)
        row = list(run(study({"cell": number}, evaluators=evaluators))[0].values())[number]
        assert row.versions["reference of first"] == f"statistics {content}"[:12]
    run(study({"cell": 2}, evaluators=evaluators))
    assert calls().count("statistics") == 2
    study(evaluators=evaluators, figure="FID")
    assert main(["study", "study.yaml", "run=false"]) == 0
    said = capsys.readouterr().out
    assert "note: The rows of evaluator first are of 2 references of one name: it has changed." in said
    assert "note: No row has the figure that decides, FID: they have FD(x), IS(x)." in said


def test_reference_images_that_were_replaced_in_their_class_folders_have_new_statistics(study, tmp_path):
    """Also where a folder of them is a link; nothing changes in the folders' own entries."""
    (tmp_path / "real").mkdir()
    (tmp_path / "ref" / "a").mkdir(parents=True)
    (tmp_path / "ref" / "b").symlink_to(tmp_path / "real")
    evaluators = {"first": {"features": "digits", "reference": "ref"}}
    for number, changed in enumerate(("ref/a/1.png", "real/2.png", "real/2.png")):
        (tmp_path / changed).write_bytes(b"one")
        os.utime(tmp_path / changed, ns=(0, min(number, 1)))
        run(study({"cell": number}, evaluators=evaluators))
        assert calls().count("statistics") == min(number, 1) + 1
    (tmp_path / "ref" / "a" / "1.png").write_bytes(b"two")
    run(study({"cell": 3}, evaluators=evaluators))
    assert calls().count("statistics") == 3


def test_a_teacher_whose_config_has_changed_is_prepared_anew(study, tmp_path):
    file = tmp_path / "teacher.yaml"
    for steps in (5, 5, 6):
        file.write_text(f"tracker: x\nrun: {tmp_path / f'teacher{steps}'}\nsteps: {steps}\n")
        run(study({"cell": 0}, prepare=[f"train {file}"]))
        (tmp_path / "results.jsonl").unlink()
        (tmp_path / "cells" / "output-seed1" / "row.json").unlink()
    assert (tmp_path / "calls").read_text().count("train " + str(file)) == 2


def test_weights_of_a_network_that_were_replaced_have_new_statistics(study, tmp_path):
    """Every later cell had failed, by those of the network before, and again with retry=true."""
    weights = tmp_path / "w.safetensors"
    network = {"name": "digits", "weights": str(weights)}
    for number, content in enumerate(("one", "other")):
        weights.write_text(content)
        run(study({"cell": number}, evaluators={"first": {"features": network, "reference": "digits:validation"}}))
    assert calls().count("statistics") == 2


def test_shared_work_that_was_deleted_is_done_again(study, tmp_path):
    file = tmp_path / "teacher.yaml"
    file.write_text(f"tracker: x\nrun: {tmp_path / 'teacher'}\nsteps: 5\n")
    for number in range(3):
        run(study({"cell": number}, prepare=[f"train {file}"]))
        if number == 1:
            shutil.rmtree(tmp_path / "teacher")
    assert (tmp_path / "calls").read_text().count("train " + str(file)) == 2


def test_shared_work_that_fails_is_no_cell(study, tmp_path):
    file = tmp_path / "data.yaml"
    file.write_text(f"tracker: fails\nrun: {tmp_path / 'teacher'}\n")
    with pytest.raises(UserError, match=r"shared work failed: train: .*data fails"):
        run(study(prepare=[f"train {file}"]))
    assert not (tmp_path / "results.jsonl").exists()
    file.write_text(f"tracker: x\nrun: {tmp_path / 'teacher'}\n")
    results, _ = run(study(prepare=[f"train {file}"]))
    assert len(results) == 4 and calls().count("train") == 6


def test_weights_that_have_changed_under_one_path_are_noted(study, tmp_path, capsys):
    """The teacher's, and those of a model that is scored as it is; rows of earlier versions say nothing."""
    contents = ("", "one", "one", "two", "two", "two")
    for number, content in enumerate(contents):
        (tmp_path / "weights").write_text(content)
        rows, _ = run(study({"cell": number}, models={"base": "asset:x"}))
    for row in rows.values():
        name = "model base" if row.variant == "base" else "teacher"
        assert row.versions.get(f"weights of {name}", "") == contents[row.cell]
    assert main(["study", "study.yaml", "run=false"]) == 0
    said = capsys.readouterr().out
    for name in ("teacher", "model base"):
        assert f"note: The rows are of 2 sets of weights of {name}, under one path: it has changed." in said


def test_weights_that_runs_begin_with_are_compared_path_by_path(study, tmp_path, capsys):
    """One path of `from`, retrained between the cells; another one's weights, and another teacher's, are no change."""
    losses = [{"name": "output"}, {"name": "shd", "weight": 0.5}]
    variants = {
        "output": {"from": "asset:a", "teacher": "asset:x"},
        "shd": {"losses": losses, "from": "asset:b", "teacher": {"teacher": "asset:y"}},
    }
    for number, (start, weights) in enumerate((("one", "p"), ("two", "q"), ("one", "p"), ("two", "q"))):
        (tmp_path / "start").write_text(start)
        (tmp_path / "weights").write_text(weights)
        config = study({"cell": number}, grid={"loss": variants}, seeds=[1, 2])
        rows, _ = run(config)
    by_cell = {
        row.cell: (row.versions["weights of the start"], row.versions["weights of teacher"], row)
        for row in rows.values()
    }
    assert [by_cell[i][:2] for i in range(4)] == [("one", "p"), ("two", "q")] * 2
    assert [by_cell[i][2].variant for i in range(4)] == ["output", "shd"] * 2
    assert main(["study", "study.yaml", "run=false"]) == 0
    assert "under one path" not in capsys.readouterr().out
    (tmp_path / "start").write_text("three")
    run(study({"cell": 4}, grid={"loss": variants}, seeds=[1, 2, 3]))
    assert main(["study", "study.yaml", "run=false"]) == 0
    said = capsys.readouterr().out
    assert "note: The rows are of 2 sets of weights of the start, under one path: it has changed." in said
    assert "note: The rows are of 2 sets of weights of teacher, under one path: it has changed." in said


@pytest.mark.parametrize("named", [True, False])
def test_prompts_and_an_autoencoder_that_have_changed_under_one_path_are_noted(named, study, tmp_path, capsys):
    """An autoencoder where the study names it; else each run has its own."""
    sampling = {"count": 20, **({"vae": "vae"} if named else {})}
    for number, content in enumerate(("a cat", "a cat", "a dog", "a dog")):
        for name in ("prompts", "vae"):
            (tmp_path / name).write_text(content)
        run(study({"cell": number}, sampling=sampling))
    assert main(["study", "study.yaml", "run=false"]) == 0
    said = capsys.readouterr().out
    assert "note: The rows' samples are drawn by 2 sets of prompts under one path: it has changed." in said
    assert ("note: The rows' samples are drawn by 2 autoencoders under one path: it has changed." in said) == named


def test_a_program_and_a_network_that_have_changed_are_noted(study, tmp_path, capsys):
    """The program by the files that its words name, as they were when it ran; rows of earlier versions say nothing."""
    program = "python score.py --with=table {samples} {out}"
    (tmp_path / "x").touch()
    evaluators = {"first": {"features": "digits", "reference": "x"}, "read": {"program": program}}
    rows = {}
    for number, (network, table) in enumerate((("", "1"), ("one", "2"), ("two", "2"))):
        (tmp_path / "score.py").write_text("import sys; open(sys.argv[3], 'w').write('{\"a\": 1}')")
        (tmp_path / "table").write_text(table)
        (tmp_path / "network").write_text(network)
        rows, _ = run(study({"cell": number, "programs": True}, evaluators=evaluators))
    networks = {row.cell: row.versions.get("network of first") for row in rows.values()}
    assert networks == {0: None, 1: "one", 2: "two"}
    one, two, three = (row.versions["program of read"] for row in sorted(rows.values(), key=lambda row: row.cell))
    assert one != two == three
    assert main(["study", "study.yaml", "run=false"]) == 0
    said = capsys.readouterr().out
    assert "note: The rows of evaluator read are of 2 versions of its program's files: it has changed." in said
    assert "note: The rows of evaluator first are of 2 sets of weights of its network: they have changed." in said


def test_an_interpreter_is_no_file_of_a_program(tmp_path):
    """Of another machine it is another, and the script is the same."""
    (tmp_path / "score.py").write_text("pass")
    (tmp_path / "tool").write_text("pass")
    script = of_program(f"python {tmp_path}/score.py {{samples}} {{out}}")
    assert script and of_program(f"{sys.executable} {tmp_path}/score.py {{samples}} {{out}}") == script
    assert of_program(f"{tmp_path}/tool {{samples}} {{out}}") == script, "by what is in them"
    assert of_program("python -m my_package {samples} {out}") == ""


def test_training_data_that_have_changed_under_one_name_are_noted(study, tmp_path, capsys):
    """Not where a decoder rounds otherwise, nor where the grid names others; earlier versions kept no glance."""
    inputs = ({}, {"samples": 3, "glance": [0.5]}, {"samples": 3, "glance": [0.5001]}, {"samples": 4, "glance": [0.5]})
    note = "note: The rows are of 2 sets of samples under one name of training data: they have changed."

    def noted(grid, **cells):
        for number, seen in enumerate(cells.values()):
            (tmp_path / "inputs").write_text(json.dumps(inputs[seen]))
            run(study({"cell": number}, grid={"data": grid}, baseline={}))
        assert main(["study", "study.yaml", "run=false"]) == 0
        return note in capsys.readouterr().out

    one, other = {"data.split": "train"}, {"data.split": "all"}
    assert not noted({"one": one, "other": other}, one_seed1=1, other_seed1=3)
    assert not noted({"one": one, "slow": {**one, "steps": 9}}, one_seed1=1, slow_seed1=0, one_seed2=2)
    assert noted({"one": one, "slow": {**one, "steps": 9}}, one_seed1=1, slow_seed1=0, one_seed2=2, slow_seed2=3)


def test_a_reference_of_statistics_is_handed_on_as_it_is(study, tmp_path):
    np.savez(tmp_path / "real.npz", mu=np.zeros(2), sigma=np.eye(2), arr_0=np.zeros((2, 4, 4, 3), np.uint8))
    run(study({"cell": 0}, evaluators={"first": {"features": "digits", "reference": "real.npz"}}))
    assert "statistics" not in calls()


def test_statistics_that_a_killed_study_left_are_made_anew(study, tmp_path):
    """The study had died before it noted them, or its child went on without it: it never started again."""
    evaluators = {"first": {"features": "digits", "reference": "real.npz"}}
    (tmp_path / "real.npz").write_text("one")
    run(study({"cell": 0}, evaluators=evaluators))
    (done,) = (file for file in tmp_path.rglob("shared/*.done"))
    done.unlink()
    rows = run(study({"cell": 1}, evaluators=evaluators))[0]
    assert len(rows) == 2 and done.exists() and calls().count("statistics") == 2


def test_reference_images_of_any_size_are_cut_to_the_samples(study, tmp_path):
    """By statistics, and again where a metric wants the images; another size is another cell."""
    (tmp_path / "photographs").mkdir()
    named = {"features": "digits", "reference": "photographs"}
    evaluators = {"first": named, "near": {**named, "metrics": ["precision_recall"]}}
    file = study(evaluators=evaluators).study
    whole = cells_of(read_study(file), file)
    cut = {name: {**keys, "size": 28} for name, keys in evaluators.items()}
    config = study({"cell": 0}, evaluators=cut)
    assert not {cell.sha256 for cell in cells_of(read_study(file), file)} & {cell.sha256 for cell in whole}
    run(config)
    lines = (tmp_path / "calls").read_text().splitlines()
    assert ["size=28" in line for line in lines if line.startswith("statistics")] == [True]
    assert ["crop=true" in line for line in lines if line.startswith("evaluate")] == [True, True]
    with pytest.raises(UserError, match=r"evaluators.*size: wanted a number from 1 to 8192, found 0"):
        read_study(study(evaluators={"first": {**named, "size": 0}}).study)
