"""The strict loader: casting, unknown keys, overrides, round trips, plug-ins."""

import dataclasses
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dit_shd.core import plugins
from dit_shd.core.config import changed, make, resolve
from dit_shd.core.config_source import keys_of
from dit_shd.core.errors import UserError
from dit_shd.core.plugins import Plugin
from dit_shd.core.yaml_files import dump, override, read_yaml, words_of
from dit_shd.data.datasets import DATASETS
from dit_shd.diffusion.sample_config import SampleConfig
from dit_shd.distillation.losses import LOSSES
from dit_shd.evaluation.features import FEATURES
from dit_shd.evaluation.metrics import METRICS
from dit_shd.models.families import FAMILIES
from dit_shd.tasks import TASKS
from dit_shd.training.config import TrainConfig

FOLDERS = {folder.kind: folder for folder in (DATASETS, FAMILIES, FEATURES, LOSSES, METRICS, TASKS)}


def test_yamls_text_numbers_are_cast():
    config = make(TrainConfig, {"optimizer": {"lr": "1e-4"}, "steps": "2e3", "teacher": 7})
    assert config.optimizer.lr == 1e-4
    assert config.steps == 2000
    assert config.teacher == "7"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stepz": 3}, r"config: unknown key 'stepz', did you mean 'steps'\?"),
        ({"optimizer": {"rl": 1}}, r"config.optimizer: unknown key 'rl', did you mean 'lr'\?"),
        ({"steps": "many"}, r"config.steps: wanted a whole number, found 'many'"),
        ({"steps": 1.5}, r"config.steps: wanted a whole number, found 1.5"),
        ({"steps": True}, r"config.steps: wanted a whole number, found True"),
        ({"ema": "nan"}, r"config.ema: wanted a number"),
        ({"precision": "fp8"}, r"config.precision: wanted no \| bf16 \| fp16"),
        ({"losses": "shd"}, r"config.losses: wanted a list"),
        ({"losses": [{"weight": 1}]}, r"config.losses.0: wanted \{name: "),
        ({"optimizer": 3}, r"config.optimizer: wanted keys and values"),
        ({"optimizer": {"betas": [0.9, "x"]}}, r"config.optimizer.betas.1: wanted a number"),
    ],
)
def test_wrong_values_say_wanted_and_found(values, message):
    with pytest.raises(UserError, match=message):
        make(TrainConfig, values)


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (
            "losses",
            {"name": "shdd"},
            r"no plug-in called 'shdd', did you mean 'shd'\? Available: .*output, .*shd",
        ),
        ("losses", {"name": "shd", "wieght": 1}, r"shd|unknown key 'wieght', did you mean 'weight'\?"),
        ("losses", {"name": "shd", "temperature": 0}, r"temperature: wanted a finite number above 0"),
        ("losses", {"name": "shd", "passes": []}, r"passes: wanted the name of one or more"),
        ("losses", {"name": "shd", "passes": 3}, r"losses\.passes: wanted a list"),
        ("task", {"name": "diffusion", "mask_ratio": 0.9}, r"task\.mask_ratio: wanted a number from 0 to 0\.8"),
        ("task", {"name": "diffusion", "label_dropout": float("nan")}, r"task\.label_dropout: wanted .* found nan"),
        ("task", {"name": "diffusion", "mask_ration": 0.3}, r"unknown key 'mask_ration', did you mean 'mask_ratio'"),
        ("task", {"name": "diffusion", "evaluation": {"cuont": 3}}, r"task\.evaluation: unknown key 'cuont'"),
        ("data", {"name": "npz"}, r"path: a value is needed"),
        ("models", {"name": "mdt", "size": "S/3"}, r"no size 'S/3'"),
        (
            "models",
            {"name": "mdt", "sample_sise": 8},
            r"unknown key 'sample_sise', did you mean 'sample_size'\?",
        ),
        ("losses", {"name": "json.JSONDecoder"}, r"add --trust json"),
    ],
)
def test_plugins_are_checked_too(section, values, message):
    from dit_shd.core.config import cast
    from dit_shd.core.plugins import Plugin

    with pytest.raises(UserError, match=message):
        FOLDERS[section].build(cast(Plugin, values, section))


def test_a_trusted_foreign_loss_is_imported_and_others_are_not():
    name = "dit_shd.distillation.losses.output.Output"
    with pytest.raises(UserError, match="--trust dit_shd"):
        LOSSES.find(name)
    plugins.trust("dit_shd")
    try:
        assert LOSSES.find(name).__name__ == "Output"
        with pytest.raises(UserError, match="not a subclass of"):
            DATASETS.find(name)
        with pytest.raises(UserError, match="cannot import"):
            LOSSES.find("dit_shd.nothing.Here")
    finally:
        plugins._trusted.clear()


@pytest.mark.parametrize("kind", FOLDERS)
def test_every_file_of_a_plugin_folder_is_a_plugin(kind):
    """The contract: one new file in the folder, and its name works."""
    found = FOLDERS[kind].names()
    assert found
    for name in found:
        cls = FOLDERS[kind].find(name)
        assert cls.__doc__


def test_the_command_line_gives_back_the_values_it_was_written_of():
    texts = ["a b", "", "no", "3", "1e-3", "a: b", "[x", "#", "it's", '"', "null", "x=y", "two\nlines", "ä"]
    values = {"list": [None, True, 2, 0.5, *texts], "mapping": {"a": None, "b": False}, "none": None, "yes": True}
    values |= {f"text{i}": text for i, text in enumerate(texts)} | {"number": 0.001, "whole": -3}
    assert override({}, words_of(values)) == values


def test_whole_numbers_keep_their_digits():
    assert make(TrainConfig, {"seed": "9007199254740993", "steps": "1e3"}).seed == 9007199254740993


def test_defaults_are_of_one_config_alone():
    config = TrainConfig()
    config.losses.append(Plugin("shd"))
    config.optimizer.betas.append(0.5)
    assert TrainConfig().losses == [] and TrainConfig().optimizer.betas == []


def test_what_is_not_a_default():
    values = resolve(make(SampleConfig, {"prompts": "a.txt", "count": 3, "call": {"guidance_scale": 2}}))
    assert changed(SampleConfig, values) == {"prompts": "a.txt", "count": 3, "call": {"guidance_scale": 2}}
    assert words_of({"features": {"name": "digits"}, "call": {"a": None}}) == ["features=digits", "call={a: null}"]


def test_overrides_reach_inside_and_leave_the_original_alone():
    values = {"losses": [{"name": "shd"}], "data": "digits"}
    changed = override(values, ["losses.0.weight=2", "optimizer.lr=1e-3", "data.split=all", "teacher=null"])
    assert changed["losses"][0] == {"name": "shd", "weight": 2}
    assert changed["data"] == {"name": "digits", "split": "all"}
    assert changed["teacher"] is None
    assert make(TrainConfig, changed).optimizer.lr == 1e-3
    assert values == {"losses": [{"name": "shd"}], "data": "digits"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps", "'steps': wanted key=value"),
        ("=3", "'=3': wanted key=value"),
        ("losses.1.weight=2", "losses.1: wanted a position from 0 to 0 in the list, found '1'"),
        ("steps.x=1", "'steps' holds 3 .*, which has no keys"),
        ("losses.x=1", "losses.x: wanted a position from 0 to 0 in the list, found 'x'"),
        ("a=[", "'a=\\[': the value is not valid YAML"),
        ("losses=[{name: shd, weight: {0: 1, 0: 2}}]", "not valid YAML: the key 0 stands twice"),
        ("losses.0=1", "losses.0: wanted {name: ..., key: value}, found 1"),
    ],
)
def test_broken_overrides_are_refused(text, message):
    with pytest.raises(UserError, match=message):
        make(TrainConfig, override({"losses": [{"name": "shd"}], "steps": 3}, [text]))


@settings(max_examples=40, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(), x, max_size=3),
        max_leaves=8,
    ),
    st.sampled_from([f.name for f in dataclasses.fields(TrainConfig)]),
)
def test_any_value_is_taken_or_refused_in_one_line(value, key):
    try:
        make(TrainConfig, {key: value})
    except UserError as error:
        assert str(error)


@pytest.mark.parametrize("cls", [TrainConfig, SampleConfig])
def test_resolved_yaml_round_trips_and_help_names_every_key(cls):
    config = cls()
    assert make(cls, yaml.safe_load(dump(config))) == config
    for field in dataclasses.fields(cls):
        assert field.name in [key.name for key in keys_of(cls.__module__, cls.__name__)]


def test_unreadable_yaml(tmp_path):
    with pytest.raises(UserError, match="found nothing"):
        read_yaml(Path("nowhere.yaml"))
    hostile = ("!!python/object/apply:os.system ['true']", "a: &b [1]\nc: *b", "a: 2020-99-99", "[" * 5000)
    for text in ("a: [", "- 1", "\t", "a: 1\nb: {c: 2, 'c': 3}", *hostile):
        (tmp_path / "x.yaml").write_text(text)
        with pytest.raises(UserError, match=r"x\.yaml"):
            read_yaml(tmp_path / "x.yaml")


def test_a_base_gives_what_a_file_does_not(tmp_path):
    (tmp_path / "a.yaml").write_text("steps: 1\nlosses: [{name: shd}, {name: output}]\noptimizer: {lr: 1, eps: 1}\n")
    (tmp_path / "b.yaml").write_text("base: a.yaml\nsteps: 2\noptimizer: {lr: 3}\n")
    (tmp_path / "c.yaml").write_text("base: b.yaml\nlosses: []\n")
    assert read_yaml(tmp_path / "c.yaml") == {"steps": 2, "optimizer": {"lr": 3}, "losses": []}


@pytest.mark.parametrize(
    "base", ["../a.yaml", "/etc/passwd", "..", "sub/a.yaml", r"sub\\a.yaml", "none.yaml", "x.yaml", "7"]
)
def test_a_base_is_another_file_of_the_folder(tmp_path, base):
    (tmp_path / "sub").mkdir()
    for name in ("a.yaml", "sub/a.yaml"):
        (tmp_path / name).write_text("steps: 1\n")
    (tmp_path / "x.yaml").write_text(f"base: {base}\n")
    with pytest.raises(UserError, match=r"base: (wanted the name|x.yaml -> x.yaml)|wanted a config file"):
        read_yaml(tmp_path / "x.yaml")


def test_a_base_that_is_missing_is_said_to_be_a_base(tmp_path):
    """It had been named as if it were what was given."""
    (tmp_path / "x.yaml").write_text("base: y.yaml")
    with pytest.raises(UserError, match=r"x\.yaml: base: wanted a config file \(YAML\), found no .*y\.yaml; "):
        read_yaml(tmp_path / "x.yaml")
