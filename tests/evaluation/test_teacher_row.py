"""Which figures of a teacher may stand beside a student's, and which never do."""

import copy
import json

import pytest
from small_families import build

from dit_shd.core.hashing import sha256_of_tensors
from dit_shd.core.weight_files import sha256_of_weights
from dit_shd.evaluation.results import table
from dit_shd.evaluation.teacher_row import shared_row, teacher_row

SETTINGS = {"prompts": ["a nine", "a two"], "call": {"guidance_scale": 5}, "seed": 0, "count": 8, "batch_size": 4}
STUDENT = {
    "figures": {"FD(x)": 2.0, "KID(x)": 0.5},
    "samples": {
        "path": "student.npz",
        "sha256": "1",
        "n": 8,
        "labels": {"classes": 2, "fewest": 4, "most": 4},
        "sidecar": {**SETTINGS, "run": "runs/student", "teacher": "hub:a/teacher", "model_sha256": "3"},
    },
    "reference": {"path": "real.npz", "sha256": "4", "n": 9},
    "features": {"title": "x", "sha256": "5"},
    "metrics": [{"name": "frechet"}, {"name": "kid", "subsets": 100}],
    "adm_comparable": {"yes": False, "why_not": ["small"]},
    "notes": [],
}


def of_teacher(**changes):
    record = copy.deepcopy(STUDENT)
    record["figures"] = {"FD(x)": 1.0}
    record["metrics"] = record["metrics"][:1]
    record["samples"] |= {"path": "teacher.npz", "sha256": "2"}
    record["samples"]["sidecar"] = {**SETTINGS, "run": "hub:a/teacher", "model_sha256": "6", "batch_size": 2}
    for path, value in changes.items():
        *keys, last = path.split("__")
        entry = record
        for key in keys:
            entry = entry[key]
        entry[last] = value
    return record


def row_beside(folder, record):
    (folder / "teacher.json").write_text(json.dumps(record))
    return teacher_row(STUDENT, folder)


def test_the_row_of_the_same_sampling_and_evaluator(tmp_path):
    row = row_beside(tmp_path, of_teacher())
    assert row == {"run": "hub:a/teacher", "results": str(tmp_path / "teacher.json"), "figures": {"FD(x)": 1.0}}
    lines = table({**STUDENT, "teacher": row}).splitlines()
    assert lines[1].split() == ["figure", "value", "teacher"]
    assert lines[2].split() == ["FD(x)", "2.0000", "1.0000"]
    assert lines[3].split() == ["KID(x)", "0.5000"]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"features__sha256": "7", "features__title": "y"}, "is of other features (y, here x)"),
        ({"reference__sha256": "7", "reference__path": "b.npz"}, "is of other reference (b.npz, here real.npz)"),
        ({"metrics": [{"name": "kid", "subsets": 9}]}, "is of other options of kid"),
        ({"samples__n": 6}, "is of 6 images (here 8)"),
        (
            {"samples__sidecar__prompts": ["a nine", "a six"]},
            "other sampling settings (prompts.1: 'a six' there, 'a two' here)",
        ),
        ({"samples__sidecar__prompts": ["a nine"]}, "other sampling settings (prompts: ['a nine'] there"),
        ({"samples__sidecar__call": {"guidance_scale": 2}}, "(call.guidance_scale: 2 there, 5 here)"),
        ({"samples__sidecar__seed": 1}, "(seed: 1 there, 0 here)"),
        ({"samples__labels__classes": 5}, "is of other classes ({'classes': 5"),
        ({"samples__sidecar__steps": 4}, "(steps: 4 there, None here)"),
    ],
)
def test_others_are_refused_with_the_reason(tmp_path, changes, reason):
    row = row_beside(tmp_path, of_teacher(**changes))
    assert [*row] == ["run", "why_not"]
    assert reason in row["why_not"]
    assert f"teacher: hub:a/teacher has no row here: {row['why_not']}" in table({**STUDENT, "teacher": row})


def test_a_teacher_that_went_on_is_another(tmp_path):
    """A run's folder keeps its name; the figures were those of the weights that it had."""
    model = build("dit")
    model.save_pretrained(tmp_path / "teacher")
    assert sha256_of_weights(tmp_path / "teacher") == sha256_of_tensors(model)
    place = str(tmp_path / "teacher")
    student = copy.deepcopy(STUDENT)
    student["samples"]["sidecar"]["teacher"] = place
    sampled = {"samples__sidecar__run": place, "samples__sidecar__model_sha256": sha256_of_tensors(model)}
    (tmp_path / "teacher.json").write_text(json.dumps(of_teacher(**sampled)))
    assert teacher_row(student, tmp_path)["figures"] == {"FD(x)": 1.0}
    next(model.parameters()).data.add_(1)
    model.save_pretrained(place)
    assert f"is of other weights than {place} has now" in teacher_row(student, tmp_path)["why_not"]
    model.half().save_pretrained(place)  # whose hash is not that of the model that was loaded
    assert teacher_row(student, tmp_path)["figures"] == {"FD(x)": 1.0}


def test_what_is_not_the_teachers_does_not_count(tmp_path):
    for name, record in {"other": of_teacher(samples__sidecar__run="hub:a/other"), "self": STUDENT}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(record))
    (tmp_path / "list.json").write_text("[1, 2]")
    row = teacher_row(STUDENT, tmp_path)
    assert row == {"run": "hub:a/teacher", "why_not": "no results file of its samples is beside these"}
    (tmp_path / "right.json").write_text(json.dumps(of_teacher()))
    assert teacher_row(STUDENT, tmp_path)["figures"] == {"FD(x)": 1.0}
    assert teacher_row(of_teacher(), tmp_path) is None, "a teacher has none"


def test_means_over_files():
    rows = [{"run": "t", "results": f"{i}.json", "figures": {"FD(x)": float(i), "b": 1.0}} for i in (1, 2)]
    assert shared_row(rows) == {"run": "t", "results": "1.json, 2.json", "figures": {"FD(x)": 1.5, "b": 1.0}}
    missing = {"run": "t", "why_not": "nothing"}
    assert shared_row([rows[0], missing]) == missing
    assert shared_row([rows[0], None]) is None
    assert "several teachers" in shared_row([rows[0], {**rows[1], "run": "s"}])["why_not"]
