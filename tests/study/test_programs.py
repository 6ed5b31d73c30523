"""Programs of others that read a study's samples and give figures."""

import re

import pytest
from studies import VALUES, calls, run

from dit_shd.core.errors import UserError

READER = """import json, sys, numpy
with numpy.load(sys.argv[1]) as samples:
    json.dump({"read right": float(samples["arr_0"].mean())}, open(sys.argv[2], "w"))
"""


def test_a_teacher_beside_and_a_program_that_reads_the_samples(study, tmp_path):
    (tmp_path / "read.py").write_text(READER)
    evaluators = {**VALUES["evaluators"], "read": {"program": "python read.py {samples} {out}"}}
    keys = {"models": {"teacher": "asset:x"}, "evaluators": evaluators, "figure": "read right"}
    with pytest.raises(UserError, match=r"python read\.py .* add programs=true"):
        run(study(**keys))
    assert not calls()
    results, _ = run(study({"programs": True}, **keys))
    assert {name: row.figures["read right"] for name, row in results.items()} == {
        "output-seed1": 1, "shd-seed1": 1, "output-seed2": 2, "shd-seed2": 2, "teacher-seed1": 1, "teacher-seed2": 2,
    }  # fmt: skip
    assert results["teacher-seed2"].seconds.keys() == {"sample", "evaluate-first", "evaluate-read"}
    assert calls().count("train") == 4 and calls().count("sample") == 6
    results, _ = run(study(**keys))  # nothing is left, so that no program runs
    assert len(results) == 6


@pytest.mark.parametrize(
    ("program", "error"),
    [
        ("nosuchprogram {samples} {out}", "nosuchprogram: cannot be run"),
        ("python -c pass {samples} {out}", "read.json: wanted figures as JSON, .* found no file"),
        ("sh -c 'echo [1] > $1' {samples} {samples} {out}", r"found no file"),
        ("sh -c 'echo {{ > $1' {samples} {out}", "found no JSON"),
        ("sh -c 'echo [1] > $1' {samples} {out}", r"found \[1\]"),
        ("""sh -c 'echo "{\\"a\\": null}" > $1' {samples} {out}""", "found {.a.: null}"),
    ],
)
def test_a_program_that_gives_no_figures_is_a_failed_row(program, error, study):
    evaluators = {"read": {"program": program}}
    results, _ = run(study({"programs": True, "cell": 0}, evaluators=evaluators))
    (row,) = results.values()
    assert row.status == "failed" and re.search(error, row.error), row.error


def test_a_program_that_was_mended_runs_again_and_nothing_else_does(study, tmp_path):
    (tmp_path / "read.py").write_text("import sys; open(sys.argv[2], 'w').write('[]')")
    evaluators = {"read": {"program": "python read.py {samples} {out}"}}
    results, _ = run(study({"programs": True, "cell": 0}, evaluators=evaluators))
    assert not results["output-seed1"].done
    (tmp_path / "read.py").write_text(READER)
    results, _ = run(study({"programs": True, "cell": 0, "retry": True}, evaluators=evaluators))
    assert results["output-seed1"].figures == {"read right": 1}
    assert calls() == ["train", "sample"]


def test_a_program_that_writes_nothing_has_not_the_figures_of_other_samples(study, tmp_path):
    (tmp_path / "read.py").write_text(READER)
    evaluators = {"read": {"program": "python read.py {samples} {out}"}}
    asked = {"programs": True, "cell": 0}
    assert run(study(asked, evaluators=evaluators, sampling={"count": 2}))[0]["output-seed1"].done
    (tmp_path / "read.py").write_text("")
    results, _ = run(study(asked, evaluators=evaluators, sampling={"count": 3}))
    assert "found no file" in results["output-seed1"].error
