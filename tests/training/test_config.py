"""Configs of runs that older versions began."""

import logging
import shutil
from string import Template

import pytest
import torch
import yaml
from conftest import TEACHER
from runs import contents, run

from dit_shd.core.config import make, resolve
from dit_shd.core.errors import UserError
from dit_shd.core.yaml_files import parse_yaml
from dit_shd.diffusion.generation import sample_to_file
from dit_shd.diffusion.sample_config import SampleConfig
from dit_shd.distillation.losses import LOSSES
from dit_shd.models.families.mdt import MDTv2
from dit_shd.training import checks
from dit_shd.training.config import TrainConfig, completed, resolved
from dit_shd.training.dry_run import dry_run

OF_0_1_0 = Template("""\
run: $run
data:
  name: npz
  flip: true
  path: $path
vae: auto
student:
  name: mdt
  sample_size: 8
  patch_size: 2
  in_channels: 1
  num_classes: 3
  num_layers: 4
  decode_layer: 2
  num_attention_heads: 2
  attention_head_dim: 4
teacher: $teacher
teacher_precision: 'no'
check_teacher: 'no'
losses:
- name: output
  weight: 1.0
  passes:
  - plain
  - masked
  variance: true
- name: shd
  weight: 0.5
  passes:
  - plain
  plan: contiguous
  method: pairwise
  temperature: 1.0
  measure: kl
  layers: sections
  backend: auto
  rows: 1.0
  calibration: 4
  seed: 0
  chunk_mib: 64
initialisation:
  weights: random
  layers: null
  heads: pick
  channels: importance
  calibration: 256
seed: 0
steps: 2
batch_size: 8
micro_batch_size: null
optimizer:
  name: adan
  lr: 0.01
  betas: []
  eps: 1.0e-08
  weight_decay: 0.0
  clip: 1.0
  warmup_steps: 2
  decay: constant
ema: 0.9
ema_warmup: false
diffusion_steps: 200
min_snr_gamma: null
label_dropout: 0.2
mask_ratio: 0.25
precision: 'no'
compile: false
gradient_checkpointing: false
sharding: 'no'
log_every: 1
checkpoint_every: 2
keep_checkpoints: 2
keep_every: 0
skip_bad_steps: 0
gradient_norms_every: 0
peak_tflops: null
evaluation:
  every: 2
  count: 3
  steps: 2
  guidance: 1.0
  labels: balanced
  reference: null
  features:
    name: inception
  sample: {}
  evaluate: {}
  keep: false
tracker: null
dry_run: false
estimate:
  mfu: 0.3
  samples: 50000
  sampling_steps: 250
  teacher: null
  measure: true
""")
"""A run's config.yaml, as 0.1.0 wrote it."""


@pytest.fixture
def old(values, tmp_path):
    """The same config as 0.1.0 took it, by the run's name."""

    def begun(name):
        told = {"run": tmp_path / name, "path": values["data"]["path"], "teacher": values["teacher"]}
        return OF_0_1_0.substitute(told)

    return begun


def test_a_run_that_0_1_0_began_goes_on_by_its_own_config(old, tmp_path, caplog):
    """Bit for bit as if it had never stopped, and nothing is said of it; its config is that of this version then."""
    straight, _ = run(parse_yaml(old("straight")), steps=4)
    begun, _ = run(parse_yaml(old("begun")))
    (begun.run / "config.yaml").write_text(old("begun"))
    caplog.clear()
    with caplog.at_level(logging.INFO, "dit_shd"):
        _, metrics = run(parse_yaml(old("begun")), steps=4)
    assert [row["step"] for row in metrics] == [3, 4]
    assert [line for line in caplog.messages if not line.startswith("ema: after 4 steps")] == []
    ours, theirs = contents(begun.run), contents(straight.run)
    evaluations = [name for name in ours if name.startswith("evaluations/") and name.endswith(".json")]  # tell the time
    assert len(evaluations) == 2
    assert {k: v for k, v in ours.items() if k not in evaluations} == {
        k: v for k, v in theirs.items() if k not in evaluations
    }
    told = yaml.safe_load((begun.run / "config.yaml").read_text())
    assert told["task"] == {
        "name": "diffusion", "label_dropout": 0.2, "mask_ratio": 0.25, "min_snr_gamma": None, "timesteps": 200,
        "evaluation": {
            "count": 3, "steps": 2, "guidance": 1.0, "labels": "balanced", "reference": None,
            "features": {"name": "inception"}, "sample": {}, "evaluate": {}, "keep": False,
        },
    }  # fmt: skip
    assert told["validate_every"] == 2
    assert not {"diffusion_steps", "min_snr_gamma", "label_dropout", "mask_ratio", "evaluation"} & told.keys()


def test_what_it_learns_may_not_change_by_either_name(old):
    config, _ = run(parse_yaml(old("begun")))
    for text in (old("begun"), (config.run / "config.yaml").read_text()):
        (config.run / "config.yaml").write_text(text)
        for key, value in (("diffusion_steps", 1000), ("mask_ratio", 0.3), ("label_dropout", 0.0)):
            with pytest.raises(UserError, match=r"already holds a run with another config \(task\."):
                run({**parse_yaml(old("begun")), key: value}, steps=4)
        assert (config.run / "config.yaml").read_text() == text
    assert len(run({**parse_yaml(old("begun")), "evaluation": {"every": 0}}, steps=3)[1]) == 1


def test_a_config_of_0_1_0_is_completed_once(old):
    """What is complete stays as it is, and what is no config is left for whoever reads it to refuse."""
    once = completed(parse_yaml(old("x")))
    assert completed(once) == once == resolve(resolved(make(TrainConfig, once)))
    for values in ({"mask_ratio": 2.0, "task": "nothing"}, {"teacher": 3, "evaluation": []}, {"what": 1}):
        assert completed(values) == values


def test_samples_of_a_run_of_0_1_0_follow_its_own_schedule(old):
    """Its config names the steps of the schedule where 0.1.0 had them."""
    config, _ = run(parse_yaml(old("begun")))
    drawn = []
    for name, text in (("new", (config.run / "config.yaml").read_text()), ("old", old("begun"))):
        (config.run / "config.yaml").write_text(text)
        told = {"run": str(config.run), "count": 3, "steps": 2, "out": str(config.run / f"{name}.npz")}
        drawn.append(sample_to_file(make(SampleConfig, told)).read_bytes())
        with pytest.raises(UserError, match="steps: wanted 1 to 200, found 201"):
            sample_to_file(make(SampleConfig, {**told, "steps": 201, "force": True}))
    assert drawn[0] == drawn[1]


@pytest.fixture
def two(values, tmp_path):
    """The same with a second teacher, of 3 heads and twice the depth."""
    torch.manual_seed(2)
    size = {"num_attention_heads": 3, "num_layers": 8, "decode_layer": 4}
    model = MDTv2(**{k: v for k, v in {**TEACHER, **size}.items() if k != "name"})
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)
    model.save_pretrained(tmp_path / "deep")
    losses = [{"name": "shd"}, {"name": "shd", "teacher": "deep"}, {"name": "output", "teacher": "deep"}]
    return {**values, "teacher": {"wide": values["teacher"], "deep": str(tmp_path / "deep")}, "losses": losses}


def test_a_run_with_two_teachers_resumes_as_if_it_had_never_stopped(two, tmp_path):
    straight, metrics = run(two)
    assert {"plain/shd", "plain/shd#2", "plain/output", "masked/output"} <= metrics[0].keys()
    assert metrics[0]["plain/shd"] != metrics[0]["plain/shd#2"]
    begun, _ = run(two, steps=2, run=str(tmp_path / "begun"))
    begun, _ = run(two, run=str(tmp_path / "begun"))
    ours, theirs = contents(begun.run), contents(straight.run)
    assert ours == theirs
    saved = yaml.safe_load((begun.run / "config.yaml").read_text())
    assert saved["teacher"] == two["teacher"]
    assert [loss.get("teacher") for loss in saved["losses"]] == [None, "deep", "deep"]
    shutil.rmtree(tmp_path / "deep")
    with pytest.raises(UserError, match="deep"):
        run(two, run=str(begun.run), steps=5)


def test_a_dry_run_counts_every_teacher(two):
    two |= {"micro_batch_size": 1, "estimate": {"measure": False}}
    found = dry_run(make(TrainConfig, two))
    assert list(found.teachers) == ["teacher wide", "teacher deep"]
    single = {"teacher": two["teacher"]["deep"], "losses": [{"name": "shd"}, {"name": "output"}]}
    deep = dry_run(make(TrainConfig, {**two, **single}))
    wide = dry_run(make(TrainConfig, {**two, "teacher": two["teacher"]["wide"], "losses": [{"name": "shd"}]}))
    both, one, other = (run.operations.passes for run in (found, wide, deep))
    assert both["plain"].teacher == one["plain"].teacher + other["plain"].teacher
    assert both["masked"].teacher == other["masked"].teacher and one["masked"].teacher == 0
    assert both["plain"].losses["shd#2"] == other["plain"].losses["shd"] > 0
    weights = "teacher's weights"
    assert found.memory.parts[weights] == wide.memory.parts[weights] + deep.memory.parts[weights]
    stand_in = {"deep": {k: v for k, v in TEACHER.items() if k != "name"} | {"name": "mdt"}}
    gone = {**two, "teacher": {**two["teacher"], "deep": "nowhere"}}
    missing = dry_run(make(TrainConfig, {**gone, "estimate": {"measure": False, "teacher": stand_in}}))
    assert missing.teachers_missing == ["nowhere"]
    with pytest.raises(UserError, match=r"teacher deep: .*nowhere.*to count without it"):
        dry_run(make(TrainConfig, gone))


@pytest.mark.parametrize(
    ("teacher", "named", "message"),
    [
        (
            {"a": "x", "b": "y"},
            [None, None],
            r"teacher\.b: y was given, but no loss reads it \(output, output\); name it",
        ),
        ({"a": "x", "b": "y"}, ["c", "b"], r"losses\.0: teacher: wanted one of a, b, found 'c'"),
        ("x", ["a", None], r"losses\.0: teacher: wanted one of teacher, found 'a'"),
        ({}, [], "wanted a place, or .* found no name"),
        ({"a.b": "x"}, [None], r"found the name 'a\.b'"),
        (None, [None], "losses need a teacher, and none was given"),
    ],
)
def test_teachers_and_losses_must_agree(values, teacher, named, message):
    losses = [{"name": "output", **({} if name is None else {"teacher": name})} for name in named]
    config = make(TrainConfig, {**values, "teacher": teacher, "losses": losses})
    with pytest.raises(UserError, match=message):
        checks.teaching(config, [LOSSES.build(plugin) for plugin in config.losses])


def test_a_loss_draws_by_the_seed_of_the_run(old):
    """A study over seeds varies what losses draw, too; a seed of a loss stands."""
    values = {**parse_yaml(old("x")), "seed": 7, "losses": ["output", "vitkd", {"name": "shd", "seed": 3}]}
    output, vitkd, shd = resolved(make(TrainConfig, values)).losses
    assert (vitkd.options["seed"], shd.options["seed"], "seed" in output.options) == (7, 3, False)
