"""The commands of a cell: what the real ones take."""

import pytest

from dit_shd.cli.arguments import split, values_of
from dit_shd.cli.specification import specification
from dit_shd.core.config import make
from dit_shd.diffusion.sample_config import SampleConfig
from dit_shd.evaluation.evaluate import EvaluateConfig
from dit_shd.reports.figures.study import curve_charts
from dit_shd.study.cell_run import figures_of, stages_of, thinned
from dit_shd.study.design import Cell, Study


def test_the_real_commands_take_the_words_of_a_cell(tmp_path):
    study = Study(
        title="t",
        config="base.yaml",
        grid={"loss": {"output": {}}},
        seeds=[3],
        sampling={"count": 20, "guidance": 2.0, "labels": "balanced"},
        evaluators={"gray": {"features": {"name": "efficientnet_lite0", "gray": True}, "reference": "digits"}},
    )
    study = make(Study, vars(study), "study")
    cell = Cell(0, "output", 3, {}, "")
    stages = stages_of(study, tmp_path, cell, {"gray": str(tmp_path / "with space.npz")})
    assert list(stages) == ["train", "sample", "evaluate-gray"]
    assert {words[0] for words in stages.values()} == {"dit-shd"}
    assert stages["train"][1:] == ["train", str(tmp_path / "train.yaml")]
    sampling = make(SampleConfig, values_of(split(stages["sample"][1:]), specification("sample")))
    sampling.check()
    assert (sampling.run, sampling.out) == (str(tmp_path / "run"), str(tmp_path / "samples.npz"))
    assert (sampling.count, sampling.guidance, sampling.labels, sampling.seed) == (20, 2.0, "balanced", 3)
    scoring = make(EvaluateConfig, values_of(split(stages["evaluate-gray"][1:]), specification("evaluate")))
    scoring.check()
    assert (scoring.samples, scoring.out) == ([str(sampling.out)], tmp_path / "gray.json")
    assert scoring.reference == str(tmp_path / "with space.npz")
    assert scoring.features.as_value() == {"name": "efficientnet_lite0", "gray": True}
    assert scoring.metrics is not None and [metric.name for metric in scoring.metrics] == ["frechet"]


def test_a_program_reads_the_samples_of_a_model_that_nobody_trained(tmp_path):
    study = Study(
        title="t",
        config="base.yaml",
        grid={"loss": {"output": {}}},
        seeds=[3],
        models={"teacher": "asset:x"},
        evaluators={"read": {"program": "python 'my read.py' {samples} --out={out}"}},
    )
    study = make(Study, vars(study), "study")
    study.check()
    stages = stages_of(study, tmp_path / "a b", Cell(0, "teacher", 3, {}, "", "asset:x"), {})
    assert list(stages) == ["sample", "evaluate-read"]
    assert stages["sample"][:3] == ["dit-shd", "sample", "asset:x"]
    folder = tmp_path / "a b"
    assert stages["evaluate-read"] == ["python", "my read.py", f"{folder}/samples.npz", f"--out={folder}/read.json"]


def test_figures_of_one_name_are_each_their_evaluators_in_whatever_order_these_stand(tmp_path):
    """The first one's had been the plain name: rows of two orders of one file were averaged."""
    evaluators = {name: {"program": f"python {name}.py {{samples}} {{out}}"} for name in ("a", "b")}
    (tmp_path / "a.json").write_text('{"accuracy": 1.0, "only": 3.0}')
    (tmp_path / "b.json").write_text('{"accuracy": 2.0}')
    for names in ("ab", "ba"):
        values = {"title": "t", "config": "x", "grid": {"loss": {"output": {}}}, "seeds": [0]}
        values["evaluators"] = {name: evaluators[name] for name in names}
        figures = figures_of(make(Study, values, "study"), tmp_path)
        assert figures == {"accuracy by a": 1.0, "accuracy by b": 2.0, "only": 3.0}


@pytest.mark.parametrize(("lines", "kept"), [(0, 0), (1, 1), (60, 60), (61, 31), (600, 60)])
def test_a_thinned_curve_ends_with_the_last_line(lines, kept):
    curve = thinned([{"step": i, "plain/noise": 1.0, "a/b/c": 1, "loss": 2} for i in range(1, lines + 1)])
    assert len(curve.get("step", [])) == kept
    assert not lines or curve["step"][-1] == lines
    assert curve.keys() == ({"step", "plain/noise"} if lines else set())


def test_the_curve_of_a_loss_that_has_ended_is_kept_and_drawn_to_its_end():
    """Also where a step was left out, which has no terms."""
    lines = [{"step": i, "plain/noise": 1.0} | ({"plain/shd": 2.0} if i < 3 else {}) for i in range(1, 5)]
    lines[0].pop("plain/noise")
    curve = thinned(lines)
    assert curve == {
        "step": [1, 2, 3, 4], "plain/noise": [None, 1.0, 1.0, 1.0], "plain/shd": [2.0, 2.0, None, None]
    }  # fmt: skip
    noise, shd = curve_charts({"shd": [curve, curve]})
    assert "nan" not in noise.svg() + shd.svg()
