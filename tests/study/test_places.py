"""A study that reads what is not there is refused before anything runs, unless its own work makes it."""

import re

import pytest
import yaml
from studies import VALUES, calls

from dit_shd.cli.program import main


@pytest.fixture
def listed(study, capsys):
    """List a study of some changes: the exit code, and what was said."""

    def ask(*words, **changes):
        code = main(["study", str(study(**changes).study), "dry_run=true", *words])
        return code, "".join(capsys.readouterr())

    return ask


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"evaluators": {"a": {"features": "digits", "reference": "my pictures"}}}, "evaluators.a.reference: .*'my pi"),
        ({"settings": {"teacher": "runs/teacher"}}, "output: teacher: found nothing at 'runs/teacher'"),
        ({"settings": {"teacher": {"a": "asset:x", "b": "runs/b"}}}, "output: teacher.b: found nothing at 'runs/b'"),
        ({"settings": {"data": {"name": "latents", "path": "lat"}}}, "output: data.path: found nothing at 'lat'"),
        ({"sampling": {"count": 2, "prompts": "my.txt"}}, "sampling.prompts: found nothing at 'my.txt'"),
        ({"models": {"big": "runs/big"}}, "models.big: found nothing at 'runs/big'"),
        ({"prepare": ["train work/teacher.yaml"]}, "study.prepare: 'train work/teacher.yaml': found no work/"),
    ],
)
def test_what_is_not_there_is_refused_first(changes, words, listed, study, capsys):
    code, said = listed(**changes)
    assert code == 2 and re.search(words, said), said
    assert "output-seed1" in said, "the list stands first"
    assert said.endswith("paths of a study, all but config, count from the folder you are in\n") and "hub" not in said
    assert main(["study", str(study(**changes).study)]) == 2 and not calls()
    assert re.search(words, capsys.readouterr().err)


def test_what_is_there_or_is_made_is_not(listed, tmp_path):
    (tmp_path / "lat").mkdir()
    (tmp_path / "teacher.yaml").write_text(yaml.safe_dump({"run": "runs/teacher"}))
    assert listed(settings={"data": {"name": "latents", "path": "lat"}})[0] == 0
    made = {"settings": {"teacher": "runs/teacher"}, "models": {"t": "runs/teacher/student"}}
    assert listed(prepare=["train teacher.yaml"], **made)[0] == 0
    encoded = {"settings": {"data": {"name": "latents", "path": "data/lat"}}}
    assert listed(prepare=["encode images=x out=data/lat"], **encoded)[0] == 0
    assert listed(prepare=["encode images=x out=data/other"], **encoded)[0] == 2
    assert listed(prepare=["train digits_flow_teacher"], settings={"teacher": "runs/digits_flow_teacher"})[0] == 0
    copied = ["configs digits_teacher out=my.yaml", "train my.yaml run=runs/t", "train runs/t/config.yaml run=runs/u"]
    assert listed(prepare=copied, settings={"teacher": "runs/u"})[0] == 0
    sampled = {"evaluators": {"a": {"features": "digits", "reference": "samples_500_seed0.npz"}}}
    assert listed(prepare=["sample run=asset:digits_teacher count=500"], **sampled)[0] == 0
    assert listed(settings={"teacher": "hub:a/b"})[0] == 0
    assert listed(settings={"teacher": "cells/shd-seed1/run"})[0] == 0
    assert listed(evaluators={"a": {**VALUES["evaluators"]["first"], "reference": "digits:all"}})[0] == 0


def test_what_one_cell_alone_needs_is_asked_of_the_others_later(listed):
    grid = {"loss": {"output": {}, "shd": {"teacher": "runs/teacher"}}}
    assert listed("cell=0", grid=grid)[0] == 0
    assert listed(grid=grid)[0] == 2
