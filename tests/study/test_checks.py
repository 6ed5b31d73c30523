"""What is refused before anything runs."""

import re

import pytest
from studies import VALUES, calls

from dit_shd.cli.program import main


def digits(**changes):
    return {"first": {"features": "digits", "reference": "digits", **changes}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"grid": {"loss": {"output": {"optimizer.lr": "1e-3"}, "shd": {"optimizer.lr": 0.001}}}},
            "output and shd are one run",
        ),
        ({"grid": {"loss": {"output": {}, "shd": {"losses.0.weight": 1.0}}}}, "output and shd are one run"),
        ({"settings": {"lr": 1}}, "study: output: config: unknown key 'lr'"),
        ({"settings": {"data.spilt": "all"}}, "study: output: data: unknown key 'spilt', did you mean 'split'"),
        ({"settings": {"steps": 0}}, "study: output: steps: wanted 1 or more, found 0"),
        ({"sampling": {"counts": 5}}, "study.sampling: unknown key 'counts', did you mean 'count'"),
        ({"sampling": {"steps": 0}}, "study.sampling.steps: wanted 1 or more, found 0"),
        ({"evaluators": {}}, "output ends without a figure; wanted evaluators, or validate_every from 1"),
        ({"evaluators": {}, "settings": {"steps": 4, "validate_every": 5}}, r"from 1 to steps \(4\) .* found 5"),
        ({"figure": "training/FD(digits)"}, r"output ends without a training/FD\(digits\); wanted validate_every"),
        (
            {"evaluators": {}, "models": {"teacher": "asset:x"}, "settings": {"validate_every": 1}},
            "study.models: teacher is scored by evaluators, and the study has none",
        ),
        ({"figure": "FID"}, "study.figure: .* found FID beside first: digits with"),
        ({"sampling": {"run": "asset:x"}}, "study.sampling.run: is each cell's own"),
        ({"evaluators": digits(features="digitz")}, "features: no plug-in called 'digitz', did you mean 'digits'"),
        ({"evaluators": digits(metrics=["fidd"])}, "metric.*: no plug-in called 'fidd'"),
        (
            {"evaluators": digits(metrics=[{"name": "kid", "subset": 3}])},
            "study.evaluators.first.metrics.kid: unknown key 'subset', did you mean 'subsets'",
        ),
        ({"figure": "FD(inception-2015)"}, "study.figure: .* found FD.inception"),
        ({"figure": "precision"}, "study.figure: .* found precision beside"),
        ({"figure": "FD(digits) by first"}, "study.figure: FD.digits. is given by first alone, .* 'FD"),
        ({"figure": "FD(digits) by second"}, "study.figure: .* by second beside"),
        (
            {"figure": "FD(digits)", "evaluators": {**digits(), "second": digits()["first"]}},
            r"study.figure: FD.digits. is given by first and second; wanted one of 'FD.digits. by first', 'FD",
        ),
        (
            {
                "figure": "precision",
                "evaluators": {
                    **digits(metrics=["precision_recall"]),
                    "second": digits(features="efficientnet_lite0", metrics=["precision_recall"])["first"],
                    "mine": {"program": "python x.py {samples} {out}"},
                },
            },
            "study.figure: precision is given by first and second; wanted one of 'precision by first', 'precision by",
        ),
    ],
)
def test_what_a_command_would_refuse_is_refused_first(changes, words, study, capsys):
    """Also of what is listed; it had trained every cell to a figure that is none."""
    for asked in (["dry_run=true"], []):
        assert main(["study", str(study(**changes).study), *asked]) == 2
        assert re.search(words, said := capsys.readouterr().err), said
    assert not calls()


@pytest.mark.parametrize(
    ("figure", "evaluators"),
    [
        ("FD(digits-0123abcd)", digits()),
        ("FD(efficientnet-lite0)", digits(features="efficientnet_lite0")),
        ("FD(digits) by second", {**digits(), "second": digits()["first"]}),
        ("FD(digits) by first", {**digits(), "mine": {"program": "python x.py {samples} {out}"}}),
        ("FD(digits)", {**digits(), "second": digits(features={"name": "digits", "weights": "x"})["first"]}),
        ("recall", digits(metrics=["frechet", "precision_recall"])),
        ("FID", {**digits(), "mine": {"program": "python x.py {samples} {out}"}}),
        ("sharpness", digits()),
        ("training/validation_loss", {}),
        ("FID", VALUES["evaluators"] | {"fid": {"reference": "x.npz"}}),
    ],
)
def test_figures_that_may_be_given(figure, evaluators, study, tmp_path):
    (tmp_path / "x.npz").touch()
    config = study(figure=figure, evaluators=evaluators, settings={"validate_every": 3})
    assert main(["study", str(config.study), "dry_run=true"]) == 0
