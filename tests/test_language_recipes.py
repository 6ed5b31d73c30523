"""The recipes of configs/language: complete, and models that fit together."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from counted_steps import check_costs

from dit_shd.core.config import cast, make
from dit_shd.core.plugins import Plugin
from dit_shd.core.yaml_files import dump, read_yaml
from dit_shd.data.datasets import DATASETS
from dit_shd.distillation.layer_map import layer_map
from dit_shd.distillation.losses.kd import KD
from dit_shd.distillation.losses.shd import SHD
from dit_shd.models.families import FAMILIES
from dit_shd.squeezing.plans import contiguous
from dit_shd.training import checks
from dit_shd.training.config import TrainConfig
from dit_shd.training.dry_run import dry_run, step_shape

FOLDER = Path(__file__).parents[1] / "configs" / "language"
NAMES = sorted(file.stem for file in FOLDER.glob("*.yaml"))
MILLIONS = {"babyllama_gpt2_teacher": 705, "babyllama_llama_teacher": 360, "babyllama_shd": 58}
"""Parameters of arXiv 2308.02019."""


def load(name, **changes):
    return make(TrainConfig, {**read_yaml(FOLDER / f"{name}.yaml"), **changes})


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_complete(name):
    config, header = load(name), (FOLDER / f"{name}.yaml").read_text()
    assert make(TrainConfig, yaml.safe_load(dump(config))) == config
    assert f"dit-shd train configs/language/{name}.yaml" in header
    checks.teaching(config, step_shape(config, 1).losses)


@pytest.mark.parametrize(
    "name", [name if name == "babyllama_shd" else pytest.param(name, marks=pytest.mark.slow) for name in MILLIONS]
)
def test_babyllama_has_the_papers_models_and_costs_what_its_header_says(name):
    found = dry_run(load(name, estimate={**read_yaml(FOLDER / f"{name}.yaml").get("estimate", {}), "measure": False}))
    models = {name: found.student} if not found.teachers else {**found.teachers, name: found.student}
    wanted = {"teacher gpt2": 705, "teacher llama": 360, **MILLIONS}
    for each, model in models.items():
        assert round(sum(p.numel() for p in model.parameters()) / 1e6) == wanted[each]
    config, header = load(name), (FOLDER / f"{name}.yaml").read_text()
    cost = re.search(r"Cost: (\S+) GFLOP a sequence, (\S+) EFLOP in all.*: (\S+) A100 or (\S+) H100 hours", header)
    check_costs(config, found.operations, cost.groups())
    gib = re.search(r"Memory by count: (\S+) GiB for 256", header)[1]
    assert found.memory.total / 2**30 == pytest.approx(float(gib), abs=0.1)


def test_babyllama_learns_from_the_mean_of_two_teachers_and_the_maps_of_one():
    losses = step_shape(load("babyllama_shd"), 1).losses
    assert [(type(loss), loss.teacher) for loss in losses] == [(KD, ["gpt2", "llama"]), (SHD, "gpt2")]
    assert losses[0].temperature == 2.0
    student, gpt2 = (read_yaml(FOLDER / f"babyllama_{x}.yaml")["student"]["config"] for x in ("shd", "gpt2_teacher"))
    assert (gpt2["n_head"], student["num_attention_heads"]) == (16, 8)


def test_dollys_teacher_and_student_read_the_same_split():
    """12,500, 1,000 and 500 documents, and no prompt is learned; 25 heads into 12."""
    student, teacher = (load(f"dolly_gpt2_xl_{x}") for x in ("to_base_shd", "teacher"))
    assert student.data == teacher.data and list(student.teachers.values()) == [str(teacher.run)]
    assert student.data.options["counts"] == [12500, 1000, 500] and "{instruction}" in student.data.options["prompt"]
    assert student.steps == 20 * 12500 // 32


def test_llamas_teacher_and_student_read_the_same_split():
    """40 layers of 40 heads into 32 of 32: eight of the student's heads learn from two each."""
    student, teacher = (load(f"dolly_llama_13b_{x}") for x in ("to_7b_shd", "teacher"))
    assert student.data == teacher.data and list(student.teachers.values()) == [str(teacher.run)]
    assert student.data.options["prompt"] == load("dolly_gpt2_xl_teacher").data.options["prompt"]
    assert student.steps == teacher.steps == 10 * 12500 // 32
    with torch.device("meta"):
        model = FAMILIES.build(student.estimate.teacher)
    assert sum(p.numel() for p in model.parameters()) == 13_015_864_320
    names = [[f"layers.{i}" for i in range(n)] for n in (40, 32)]
    mapped = layer_map(*names, "proportional")
    assert [mapped[f"layers.{i}"] for i in (0, 3, 31)] == ["layers.1", "layers.4", "layers.39"]
    assert sorted(map(len, contiguous(40, 32))) == [1] * 24 + [2] * 8


def test_the_five_sets_have_the_prompts_that_were_trained_with():
    sets = read_yaml(FOLDER / "instructions" / "five_sets.yaml")
    trained = load("dolly_gpt2_xl_teacher").data.options["prompt"]
    assert list(sets) == ["dolly", "self_instruct", "vicuna", "super_natural", "unnatural"]
    for values in sets.values():
        plugin = cast(Plugin, values, "sets")
        assert plugin.options["prompt"] == trained.replace("{context}", "{input}")
        assert DATASETS.filled(plugin, "data").name == "text"


def test_the_study_varies_the_losses_alone():
    study = read_yaml(FOLDER.parents[1] / "experiments" / "kjv_language" / "study.yaml")
    levels = study["grid"]["loss"]
    assert [[loss["name"] for loss in level["losses"]] for level in levels.values()] == [
        [], ["kd"], ["shd"], ["kd", "shd"],
    ]  # fmt: skip
    assert study["prepare"] == ["train configs/language/kjv_teacher.yaml"] and len(study["seeds"]) == 3
