"""The recipes of configs/classification and their study: complete, models that fit together, headers that are true."""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml
from counted_steps import check_costs

from dit_shd.attention.recording.attach import capture
from dit_shd.cli.program import main
from dit_shd.core.config import make, resolve
from dit_shd.core.yaml_files import dump, override, read_yaml
from dit_shd.data.datasets import DATASETS
from dit_shd.data.datasets.mnist import FASHION
from dit_shd.distillation.losses import LOSSES
from dit_shd.models.families import FAMILIES
from dit_shd.tasks import TASKS
from dit_shd.training.config import TrainConfig
from dit_shd.training.dry_run import dry_run

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "configs" / "classification"
NAMES = sorted(file.stem for file in FOLDER.glob("*.yaml"))
IMAGENET = ["deit3_s_to_deit_ti_nkd_vitkd", "deit3_s_to_deit_ti_shd", "deit_ti_alone"]


def load(name: str, *assignments: str) -> TrainConfig:
    return make(TrainConfig, override(read_yaml(FOLDER / f"{name}.yaml"), assignments))


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_complete(name):
    """It loads and round-trips, its plug-ins take its keys, and its header says how to run it and what it costs."""
    config, header = load(name), (FOLDER / f"{name}.yaml").read_text()
    assert make(TrainConfig, yaml.safe_load(dump(config))) == config
    assert f"train_dit.py configs/classification/{name}.yaml" in header and "Cost:" in header
    TASKS.build(config.task, "task")
    for loss in config.losses:
        LOSSES.filled(loss, "losses")
    assert config.data.name in DATASETS.names() and config.student.name == "timm"


@pytest.mark.parametrize("name", [IMAGENET[0], *(pytest.param(name, marks=pytest.mark.slow) for name in IMAGENET[1:])])
def test_a_header_tells_what_is_counted(name):
    """By dry_run, which needs neither ImageNet nor the hub; the models fit together and the heads are the paper's."""
    config = load(name, "estimate.measure=false")
    found, header = dry_run(config), (FOLDER / f"{name}.yaml").read_text()
    told = re.search(r"Cost: (\S+) GFLOP an image, (\S+) EFLOP in all: (\S+) A100 or (\S+) H100 hours", header)
    check_costs(config, found.operations, told.groups())
    assert float(re.search(r"count: (\S+) GiB for 1024", header)[1]) == pytest.approx(
        found.memory.total / 2**30, abs=0.1
    )
    assert config.steps == round(300 * 1_281_167 / 1024)
    assert config.optimizer.warmup_steps == round(20 * 1_281_167 / 1024)


@pytest.mark.slow
def test_the_paper_s_pair_has_6_and_3_heads():
    config, heads = load("deit3_s_to_deit_ti_shd"), []
    for plugin in (config.estimate.teacher, config.student):
        model = FAMILIES.build(plugin, "model").eval()
        c, y, x = model.input.shape
        with capture(model) as captures:
            model(next(model.parameters()).new_zeros(1, c, y, x))
        assert len(captures) == 12
        heads.append({layer.heads for layer in captures.values()})
    assert heads == [{6}, {3}]


@pytest.mark.parametrize("control", ["deit3_s_to_deit_ti_nkd_vitkd", "deit_ti_alone"])
def test_a_control_run_differs_in_its_losses_only(control):
    ours, other = resolve(load(control)), resolve(load("deit3_s_to_deit_ti_shd"))
    assert {key for key in ours if ours[key] != other[key]} <= {
        "run",
        "losses",
        "teacher",
        "teacher_precision",
        "estimate",
    }
    terms = [[term["name"] for term in config["losses"]] for config in (ours, other)]
    assert terms == [["nkd", "vitkd"] if "nkd" in control else [], ["nkd", "vitkd", "shd"]]


def test_the_study_varies_the_losses_alone():
    study = read_yaml(ROOT / "experiments" / "fashion_classification" / "study.yaml")
    levels = study["grid"]["loss"]
    assert set(levels) == {"none", "kd", "shd", "kd_shd"} and len(study["seeds"]) == 3
    teacher = str(load("fashion_teacher").run)
    assert all(set(level) in (set(), {"teacher", "losses"}) for level in levels.values())
    assert all(level.get("teacher", teacher) == teacher for level in levels.values())
    assert [loss["name"] for loss in levels["kd_shd"]["losses"]] == ["kd", "shd"]


def commands() -> list[list[str]]:
    """Those of `dit-shd` in docs/classification.md, without the program's name."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "classification.md").read_text(), re.DOTALL)
    words = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    return [command[1:] for command in words if command[:1] == ["dit-shd"]]


def test_the_page_s_commands_run(tmp_path, monkeypatch, capsys):
    """Made small: counts without a step, two steps of eight images, the accuracy of 500 digits, a study's cells."""
    small = {
        "deit3_s_to_deit_ti_shd.yaml": ["estimate.measure=false"],
        "fashion_teacher.yaml": ["steps=2", "batch_size=8", "validate_every=0"],
        "fashion_student.yaml": ["steps=2", "batch_size=8", "validate_every=0", "check_teacher=no"],
        "fashion_kd_shd": ["data={name: digits, split: validation}"],
        "study.yaml": ["dry_run=true"],
    }
    monkeypatch.chdir(tmp_path)
    for name in ("configs", "experiments"):
        Path(name).symlink_to(ROOT / name)
    ran = []
    for command in commands():
        more = small.get(Path(command[1]).name)
        needs_fashion = "fashion" in command[1] and command[0] == "train"
        if more is None or (not FASHION.is_dir() and (needs_fashion or command[0] == "accuracy")):
            continue  # of a run that takes days, or: apt install dataset-fashion-mnist
        assert main([*command, *more]) == 0, command
        ran.append(command[0])
    printed = capsys.readouterr().out
    assert ran == (["train", "train", "train", "accuracy", "study"] if FASHION.is_dir() else ["train", "study"])
    assert "shd" in printed and "11  kd_shd-seed2" in printed
    if FASHION.is_dir():
        losses = json.loads(Path("runs/fashion_kd_shd/metrics.jsonl").read_text().splitlines()[-1])
        assert {"plain/kd", "plain/shd"} <= losses.keys()
        assert "student_ema_0" in printed and "top-5 %" in printed
