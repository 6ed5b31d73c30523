"""Study files: variants, comparisons, the order of cells, and what is refused."""

import pytest
import yaml

from dit_shd.cli.specification import specification
from dit_shd.core.config import make
from dit_shd.core.errors import UserError
from dit_shd.diffusion.sample_config import SampleConfig
from dit_shd.study.design import Study, cells_of, read_study

VALUES = {
    "title": "t",
    "config": "base.yaml",
    "grid": {
        "start": {"warm": {"initialisation.weights": "teacher"}, "cold": {}},
        "loss": {"output": {}, "shd": {"losses": [{"name": "shd", "seed": "{seed}"}]}, "hard": {"losses.0.weight": 3}},
    },
    "seeds": [4, 7],
}


@pytest.fixture
def file(tmp_path):
    (tmp_path / "base.yaml").write_text("run: somewhere\nsteps: 9\nlosses: [{name: output, weight: 1}]\n")

    def write(**changes):
        (tmp_path / "study.yaml").write_text(yaml.safe_dump({**VALUES, **changes}, sort_keys=False))
        return tmp_path / "study.yaml"

    return write


def cells(file):
    return cells_of(read_study(file), file)


def test_a_variant_is_a_level_of_every_factor(file):
    found = {cell.name: cell.training for cell in cells(file(settings={"optimizer.lr": 0.5}))}
    assert len(found) == 12
    assert found["warm-shd-seed7"] == {
        "steps": 9,
        "losses": [{"name": "shd", "seed": 7}],
        "initialisation": {"weights": "teacher"},
        "optimizer": {"lr": 0.5},
        "seed": 7,
    }
    assert found["cold-hard-seed4"]["losses"] == [{"name": "output", "weight": 3}]


def test_cells_run_block_by_block_and_seed_by_seed(file):
    found = cells(file(order=[["cold-shd", "cold-output"], ["warm-shd"]]))
    assert [cell.number for cell in found] == list(range(12))
    names = ["cold-shd-seed4", "cold-output-seed4", "cold-shd-seed7", "cold-output-seed7", "warm-shd-seed4"]
    assert [cell.name for cell in found][:5] == names
    assert len({cell.name for cell in found}) == 12


def test_everything_a_figure_depends_on_is_in_the_hash(file):
    first = {cell.name: cell.sha256 for cell in cells(file())}
    assert len(set(first.values())) == 12
    same = {cell.name: cell.sha256 for cell in cells(file(title="other", seeds=[7, 4], order=[["cold-shd"]]))}
    assert same == first
    evaluators = {"digits": {"features": "digits", "reference": "digits"}}
    for change in ({"sampling": {"steps": 3}}, {"settings": {"steps": 8}}, {"evaluators": evaluators}):
        assert not set(first.values()) & {cell.sha256 for cell in cells(file(**change))}


def test_claims_come_first_and_every_level_is_compared_with_the_baseline(file):
    claims = [{"text": "x", "better": "warm-shd", "than": "warm-hard"}]
    study = read_study(file(baseline={"loss": "output"}, claims=claims))
    assert study.comparisons == [
        ("warm-shd", "warm-hard"),
        ("warm-shd", "warm-output"),
        ("warm-hard", "warm-output"),
        ("cold-shd", "cold-output"),
        ("cold-hard", "cold-output"),
    ]
    assert ("warm-output", "cold-output") in make(Study, {**VALUES, "baseline": {"start": "cold"}}).comparisons


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"grid": {}}, "at least one factor"),
        ({"grid": {"loss": {}}}, "at least one level"),
        ({"grid": {"loss": {"../x": {}}}}, "a name of letters"),
        ({"seeds": [1, 1]}, "different whole numbers"),
        ({"seeds": []}, "at least one"),
        ({"settings": {"seed": 3}}, "study.settings: seed is the study's"),
        ({"grid": {"loss": {"a": {"run": "x"}}}}, "study.grid.loss.a: run is the study's"),
        ({"order": [["warm-nothing"]]}, "study.order: no variant 'warm-nothing'"),
        ({"claims": [{"text": "x", "better": "a", "than": "b"}]}, "study.claims: no variant 'a'"),
        ({"baseline": {"loss": "none"}}, "found loss: none"),
        ({"evaluators": {"a b": {"reference": "digits"}}}, "a name of letters"),
        ({"evaluators": {"a": {}}}, "study.evaluators.a: wanted a reference .* found neither"),
        ({"prepare": ["--trust mine train x.yaml"]}, "study.prepare: .* found --trust"),
        ({"prepare": ["study other.yaml programs=true"]}, "study.prepare: .* found study"),
        (
            {"evaluators": {"samples": {"reference": "digits"}}},
            "samples.json is a record of a cell; choose another name",
        ),
        ({"evaluators": {"a": {"reference": "digits", "program": "x {samples} {out}"}}}, "found both"),
        ({"evaluators": {"a": {"program": "x {samples}"}}}, "found no {out}"),
        (
            {"evaluators": {"a": {"program": "x {samples} {out}", "size": 32}}},
            "are of dit-shd evaluate, not of a program",
        ),
        ({"evaluators": {"a": {"program": "x '{samples} {out}"}}}, "No closing quotation"),
        ({"grid": {"loss": {"a": {}}}, "models": {"a": "x"}}, "study.models.a: a variant of the grid has this name"),
        ({"models": {"../x": "x"}}, "a name of letters"),
        ({"grid": {"one": {"a": {"lr": 1}, "b": {"lr": 2}}, "two": {"c": {"lr": 3}}}}, "a-c and b-c are one run"),
        (
            {"grid": {"w": {"a": {"losses.0.weight": 1}}, "kind": {"b": {"losses": [{"name": "shd"}]}}}},
            "study.grid.w.a: losses.0.weight is lost in a-b, as losses of study.grid.kind.b comes after it",
        ),
        (
            {"settings": {"losses.0.weight": 1}},
            "study.settings: losses.0.weight is lost in warm-shd, as losses of study.grid.loss.shd comes after it",
        ),
        (
            {"grid": {"w": {"a": {"optimizer.lr": 1, "optimizer": {"name": "adamw"}}}}},
            "study.grid.w.a: optimizer.lr is lost in a, as optimizer of study.grid.w.a",
        ),
        ({"sead": [1]}, "unknown key 'sead', did you mean 'seeds'"),
    ],
)
def test_what_is_refused(changes, words, file):
    with pytest.raises(UserError, match=words):
        read_study(file(**changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"grid": {"weight": {"one": {}, "same": {"losses.0.weight": 1}}}}, "one and same are one run, .* same config"),
        ({"models": {"a": "teacher", "b": "teacher"}}, "a and b are one run, with the same model"),
    ],
)
def test_variants_whose_runs_are_one_are_refused(changes, words, file):
    with pytest.raises(UserError, match=words):
        cells(file(**changes))


def test_a_key_that_is_set_again_counts_where_it_is_set_last(file):
    shd, hard = {"losses": [{"name": "shd"}]}, {"losses.0.weight": 3}
    (cell,) = cells(file(settings={"losses.0.weight": 2}, grid={"a": {"shd": shd}, "b": {"hard": hard}}, seeds=[4]))
    assert cell.training["losses"] == [{"name": "shd", "weight": 3}]


def test_a_base_config_that_is_not_there(file):
    with pytest.raises(UserError, match="wanted a config file"):
        cells(file(config="nothing.yaml"))


def test_the_study_file_that_help_shows_is_one(tmp_path):
    text = specification("study").text
    (tmp_path / "study.yaml").write_text(text[text.index("    title:") :])
    (tmp_path / "base.yaml").write_text("steps: 3\n")
    study = read_study(tmp_path / "study.yaml")
    assert len(cells_of(study, tmp_path / "study.yaml")) == 6 and study.comparisons == [("shd", "output")]
    make(SampleConfig, study.sampling)
