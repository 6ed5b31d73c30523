"""The page of several evaluations, and what may not be set side by side."""

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from evaluating import pictures, run
from pages import images_of, words_of
from safetensors.torch import load_file, save_file

from dit_shd.cli.commands.compare import CompareConfig, _names, compare
from dit_shd.cli.program import main
from dit_shd.core.config import make
from dit_shd.core.errors import UserError
from dit_shd.core.weight_files import sha256_of_weights
from dit_shd.reports.comparison_page import comparison_notes, cost_columns
from dit_shd.reports.tables import number


@pytest.fixture
def two(files, teacher) -> list[str]:
    """Results of two files, the first of which says which model it came from."""
    found = []
    for i, seed in enumerate((1, 9)):
        samples = files["folder"] / f"{'teacher' if i == 0 else 'student'}.npz"
        np.savez(samples, pictures(40, seed=seed))
        if i == 0:
            told = {"run": str(teacher), "steps": 50, "guidance": 1.0}
            samples.with_suffix(".json").write_text(json.dumps(told))
        found.append(str(files["folder"] / f"{i}.json"))
        run(files, samples=str(samples), out=found[-1], page=False)
    return found


def compared(results: list[str], folder: Path, **values) -> list:
    return compare(make(CompareConfig, {"results": results, "out": str(folder / "page.html"), **values}))


def test_cost_stands_beside_figures(two, tmp_path, capsys):
    rows = compared(two, tmp_path)
    assert [row.name for row in rows] == ["teacher", "student"]
    assert rows[0].cost.heads == 4
    assert rows[0].cost.parameters > 0
    assert rows[1].cost is None
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    words = words_of(page)
    assert f"<td>{rows[0].cost.parameters / 1e6:.2f}</td>" in words
    assert number(rows[1].figures["KID(digits)"]) in words
    assert "student: no cost, because no file beside the samples records their model" in words
    assert "sampled with different steps: teacher 50, student not recorded" in words
    assert "one training seed each" in words
    assert len(images_of(page)) == 2
    real = json.loads(Path(two[0]).read_text())["real"]
    assert real["n"] == 25 and "25 images of the reference against its others" in words
    score = number(real["figures"]["FD(digits)"])
    assert f'<tr class="scale"><td>real images</td>{"<td></td>" * 4}<td>{score}</td>' in words
    assert "FD(digits)" in capsys.readouterr().out


def test_a_spread_over_draws_of_one_model_is_none_over_training():
    """Beside such a spread the note was left out, though it is of one training seed."""
    entry = {"path": "x.npz", "n": 40}
    run = [{"samples": {**entry, "sidecar": {"model_sha256": sha256}}} for sha256 in "aab"]
    head = {"adm_comparable": {"yes": True, "why_not": []}, "figures": {}}
    single, draws = {**head, "samples": entry}, {**head, "spread": {}, "runs": run[:2]}
    trained = {**head, "spread": {}, "runs": run[1:]}
    found = [comparison_notes(list("xyz"), rows)[-1] for rows in ([single, draws, draws], [trained, draws, single])]
    assert found == [
        "one training seed each: another one can move FID more than the differences here",
        "one training seed of y, z: another one can move FID more than the differences here",
    ]
    assert not any("training seed" in note for note in comparison_notes(list("xy"), [trained, trained]))


def test_images_of_other_weights_are_not_shown_beside_old_figures(two, tmp_path):
    np.savez(Path(two[1]).parent / "student.npz", pictures(40, seed=10))
    compared(two, tmp_path)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert len(images_of(page)) == 1
    assert "Other images are in the file of student now than were evaluated." in words_of(page)


def test_images_are_found_from_another_folder_or_said_to_be_gone(two, tmp_path, monkeypatch):
    """Records hold paths as evaluate was given them, at which other images may lie here."""
    monkeypatch.chdir(tmp_path)
    Path("elsewhere").mkdir()
    np.savez("elsewhere/student.npz", pictures(40, seed=10))
    for file in two:
        record = json.loads(Path(file).read_text())
        record["samples"]["path"] = f"elsewhere/{Path(record['samples']['path']).name}"
        Path(file).write_text(json.dumps(record))
    compared(two, tmp_path, cost=False)
    assert len(images_of((tmp_path / "page.html").read_text(encoding="utf-8"))) == 2
    (Path(two[1]).parent / "student.npz").unlink()
    Path("elsewhere/student.npz").unlink()
    compared(two, tmp_path, cost=False, force=True)
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert len(images_of(page)) == 1
    assert "No images are there any more of student (elsewhere/student.npz)." in words_of(page)


def test_models_that_were_sampled_by_other_solvers_are_noted(two, tmp_path):
    settings = {"solver": "ddpm", "guided_channels": 3, "call": {}}
    for file, changes in zip(two, ({}, {"solver": "ddim", "guided_channels": None})):
        record = json.loads(Path(file).read_text())
        record["samples"]["sidecar"] = {**settings, **changes}
        Path(file).write_text(json.dumps(record))
    compared(two, tmp_path, names=["a", "b"], cost=False)
    words = words_of((tmp_path / "page.html").read_text())
    assert "sampled with different solver: a ddpm, b ddim" in words
    assert "sampled with different guided_channels: a 3, b None" in words
    assert "different call" not in words and "different steps" not in words
    assert "<td>ddim</td>" in words


def test_figures_that_not_all_have_are_named(two, tmp_path):
    record = json.loads(Path(two[1]).read_text())
    del record["figures"]["KID(digits)"]  # as of another choice of metrics
    record["figures"]["IS(digits)"] = 9.0
    first = json.loads(Path(two[0]).read_text())
    first["figures"].pop("IS(digits)", None)
    for file, content in zip(two, (first, record)):
        Path(file).write_text(json.dumps(content))
    compared(two, tmp_path, names=["a", "b"], cost=False)
    words = words_of((tmp_path / "page.html").read_text())
    assert "left out, since not all have them: KID(digits) (only of a), IS(digits) (only of b)" in words


def test_without_one_scale_there_is_none(two, tmp_path):
    record = json.loads(Path(two[1]).read_text())
    del record["real"]  # as in results of earlier versions
    Path(two[1]).write_text(json.dumps(record))
    compared(two, tmp_path, cost=False)
    assert "real images" not in words_of((tmp_path / "page.html").read_text())


def test_another_model_than_the_sampled_one_has_no_cost(two, tmp_path):
    record = json.loads(Path(two[0]).read_text())
    record["samples"]["sidecar"]["model_sha256"] = "0" * 64
    Path(two[0]).write_text(json.dumps(record))
    assert compared(two, tmp_path)[0].cost is None
    assert "has changed since the images were sampled" in (tmp_path / "page.html").read_text()
    compared(two, tmp_path, cost=False, force=True)
    said = words_of((tmp_path / "page.html").read_text())
    assert f"the figures are of earlier weights of {record['samples']['sidecar']['run']}; sample and evaluate" in said


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["features"].update(sha256="1"), "wanted the features of"),
        (lambda r: r["reference"].update(sha256="1"), "wanted the reference of"),
        (lambda r: r["metrics"][-1].update(k=7), "wanted the options of precision_recall of"),
        (lambda r: r.pop("figures"), "wanted a results file"),
        (lambda r: r["figures"].update({"FD(digits)": "NaN"}), "wanted a results file"),
    ],
)
def test_what_is_not_comparable_is_refused(two, tmp_path, change, message):
    record = json.loads(Path(two[1]).read_text())
    change(record)
    Path(two[1]).write_text(json.dumps(record))
    with pytest.raises(UserError, match=message):
        compared(two, tmp_path, cost=False)
    assert not (tmp_path / "page.html").exists()


def test_nonsense_comparisons_are_refused(two, tmp_path):
    for results, values, message in (
        (two[:1], {}, "at least two results files"),
        ([two[0], str(tmp_path / "no.json")], {}, "found nothing"),
        (two, {"names": ["one"]}, "names: wanted 2"),
        (
            two,
            {"names": ["one", "one"]},
            "names: wanted 2 different ones, .* found 2, 1 of them",
        ),
    ):
        with pytest.raises(UserError, match=message):
            compared(results, tmp_path, cost=False, **values)
    (tmp_path / "page.html").write_text("mine")
    with pytest.raises(UserError, match="is there already"):
        compared(two, tmp_path, cost=False)
    assert (tmp_path / "page.html").read_text() == "mine"


def test_the_command(two, tmp_path, capsys):
    assert main(["compare", *two, f"out={tmp_path / 'c.html'}", "cost=false", "names=[big, small]"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^big ", printed, re.M)
    assert re.search(r"^small ", printed, re.M)
    assert main(["compare", two[0]]) == 2


def test_a_run_folder_stands_for_its_newest_result(two, tmp_path, capsys):
    runs = []
    for i, file in enumerate(two):
        run = tmp_path / f"run{i}"
        (run / "deep").mkdir(parents=True)
        (run / "old.results.json").write_text(Path(two[0]).read_text())
        os.utime(run / "old.results.json", (1, 1))
        (run / "deep" / "results.json").write_text(Path(file).read_text())
        runs.append(str(run))
    rows = compared(runs, tmp_path, cost=False)
    assert [row.figures for row in rows] == [json.loads(Path(file).read_text())["figures"] for file in two]
    assert f"note: {runs[1]}: of 2 results files the newest is shown, deep/results.json" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no results; make some first: dit-shd sample .*empty count=1000"):
        compared([runs[0], str(tmp_path / "empty")], tmp_path)
    (tmp_path / "empty" / "config.yaml").write_text("task: {name: text_to_image}")
    with pytest.raises(
        UserError, match=r"sample .*empty prompts=prompts\.txt out=.*empty/samples\.npz and .* evaluate .*/"
    ):
        compared([runs[0], str(tmp_path / "empty")], tmp_path)
    (tmp_path / "empty" / "config.yaml").write_text("task: {name: language_modeling}")
    with pytest.raises(UserError, match=r"has learned language_modeling .*; dit-shd perplexity RUNS\.\.\. measures"):
        compared([runs[0], str(tmp_path / "empty")], tmp_path)


@pytest.mark.parametrize("moved", [False, True])
def test_a_run_folder_does_not_stand_for_its_teacher_whose_samples_are_in_it(two, tmp_path, moved):
    """dit-shd evaluate RUN/samples.npz proposes out=RUN/teacher_of_samples.npz, whose results are then the newest."""
    run = tmp_path / "student"
    run.mkdir()
    models = {"results": str(tmp_path / "before" if moved else run), "teacher_of_x.results": str(tmp_path / "teacher")}
    for age, (name, model) in enumerate(models.items()):
        record = json.loads(Path(two[age]).read_text())
        record["samples"]["sidecar"] = {"run": model, **({} if age else {"teacher": str(tmp_path / "teacher")})}
        (run / f"{name}.json").write_text(json.dumps(record))
        os.utime(run / f"{name}.json", (age, age))
    rows = compared([two[1], str(run)], tmp_path, cost=False)
    assert rows[1].figures == json.loads(Path(two[0]).read_text())["figures"] != rows[0].figures


@pytest.mark.parametrize("teacher", ["asset:digits_teacher", "teachers/one"])
def test_a_run_folder_with_its_teacher_s_results_alone_holds_none(two, tmp_path, teacher):
    """They had been the run's: what the teacher was sampled by names no teacher."""
    run, record = tmp_path / "student", json.loads(Path(two[0]).read_text())
    run.mkdir()
    (run / "config.yaml").write_text(f"teacher: {teacher}\ntask: {{name: diffusion}}")
    record["samples"]["sidecar"] = {"run": teacher}
    (run / "results.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"holds no results; make some first"):
        compared([two[1], str(run)], tmp_path, cost=False)


def test_a_run_that_was_renamed_has_its_present_name_cost_and_weights(two, teacher, tmp_path, capsys):
    """A run at its old place had been said to be it: its figures "of earlier weights", its cost left out."""
    run, record = tmp_path / "renamed", json.loads(Path(two[0]).read_text())
    shutil.copytree(teacher, run / "student")
    (run / "config.yaml").write_text("{}")
    digest = sha256_of_weights(run / "student")
    away = tmp_path / "before"
    shutil.copytree(teacher, away)
    for file in away.glob("*.safetensors"):
        weights = load_file(file)
        save_file({name: tensor + 1 for name, tensor in weights.items()}, file)
    record["samples"]["sidecar"] = {"run": str(away), "model_sha256": digest}
    (run / "results.json").write_text(json.dumps(record))
    rows = compared([str(run), two[1]], tmp_path)
    said = capsys.readouterr().out
    assert rows[0].name == "renamed" and rows[0].cost is not None and "earlier weights" not in said
    for file in (run / "student").glob("*.safetensors"):
        shutil.copy(next(away.glob("*.safetensors")), file)
    rows = compared([str(run), two[1]], tmp_path, force=True)
    assert "of earlier weights of" in capsys.readouterr().out and rows[0].cost is None


def record_of(run, verdict=(), **settings):
    sidecar = {"run": run, **settings}
    return {"samples": {"n": 9, "path": "x.npz", "sidecar": sidecar}, "adm_comparable": {"why_not": [*verdict]}}


def test_a_run_has_its_whole_name():
    """A dot in it begins no suffix: 0.1 and 0.3 are weights of losses, 0.999 the rate of an average."""
    records = [record_of(run) for run in ("runs/shd_w0.1", "runs/x/student_ema_0.999")]
    assert _names(["a.json", "b.json"], records) == ["shd_w0.1", "student_ema_0.999"]


def test_a_verdict_names_all_that_it_is_of():
    names, records = ["a", "b", "c"], [record_of("x", verdict) for verdict in (["jpeg"], ["jpeg"], [])]
    found = comparison_notes(names, records)
    assert "a, b: ADM-comparable: no: jpeg" in found and "c: ADM-comparable: yes" in found


def test_other_prompts_and_schedulers_are_noted():
    settings = [{"prompts": ["a", "b"], "scheduler": {"shift": 3}}, {"prompts": ["a"], "scheduler": {"shift": 9}}]
    found = comparison_notes(["one", "two"], [record_of("x", **each) for each in settings])
    assert "sampled with different prompts: one 2 (the first: a), two 1 (the first: a)" in found
    assert any(note.startswith("sampled with different scheduler: ") for note in found)


def test_a_text_to_image_model_has_no_cost():
    notes = []
    assert cost_columns("x", record_of("asset:captioned_digits"), notes) is None
    assert notes == ["x: no cost, which is measured of class-conditional models (SD3Transformer2DModel)"]


def test_results_are_never_replaced_by_their_page(two):
    before = Path(two[1]).read_bytes()
    with pytest.raises(UserError, match="is what is read here, and would be lost"):
        compare(make(CompareConfig, {"results": two, "out": two[1], "force": True, "cost": False}))
    assert Path(two[1]).read_bytes() == before
