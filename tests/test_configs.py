"""The configs that ship: complete, true to their headers, and of models that fit together."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from counted_steps import check_costs

from dit_shd.attention.recording.discovery import own_layers
from dit_shd.core.config import make, resolve
from dit_shd.core.yaml_files import dump, read_yaml
from dit_shd.data.datasets import DATASETS
from dit_shd.distillation.layer_map import layer_map
from dit_shd.distillation.losses import LOSSES
from dit_shd.distillation.losses.shd import SHD
from dit_shd.models.families import FAMILIES
from dit_shd.profiling import meta
from dit_shd.profiling.estimate import PROCESSES, hours, peaks
from dit_shd.profiling.flops import step_operations
from dit_shd.profiling.memory import step_memory
from dit_shd.tasks import TASKS
from dit_shd.training import checks
from dit_shd.training.config import TrainConfig
from dit_shd.training.dry_run import dry_run, step_shape

FOLDER = Path(__file__).parents[1] / "configs"
NAMES = sorted(file.stem for file in FOLDER.glob("*.yaml"))
CONTROLS = {
    "digits_output": "digits_shd",
    "digits_flow_output": "digits_flow_shd",
    "dit_b2_alone": "dit_xl2_to_b2_shd",
    "dit_xl2_to_b2_output": "dit_xl2_to_b2_shd",
    "mdtv2_b2_to_s2_output": "mdtv2_b2_to_s2_shd",
    "mdtv2_b2_to_s2_feature": "mdtv2_b2_to_s2_shd",
    "mdtv2_b2_to_s2_minilmv2": "mdtv2_b2_to_s2_shd",
    "mdtv2_b2_to_s2_self_correlation": "mdtv2_b2_to_s2_shd",
    "mdtv2_b2_to_s2_vkd": "mdtv2_b2_to_s2_shd",
    "mdtv2_s2_alone": "mdtv2_b2_to_s2_shd",
    "mdtv2_xl2_to_s2_output": "mdtv2_xl2_to_s2_shd",
}
"""Control run -> what it is compared with."""
SOON_COUNTED = "dit_b2_alone", "dit_xl2_to_b2_shd", "mdtv2_s2_alone"
"""Configs whose counts take a second or two."""
TEACHERS = {
    "mdtv2_b2_to_s2_shd": "mdtv2_b2_teacher",
    "mdtv2_b1_to_s1_512_shd": "mdtv2_b1_512_teacher",
    "digits_flow_shd": "digits_flow_teacher",
}
"""Config -> the config of its teacher."""


def load(name: str) -> TrainConfig:
    return make(TrainConfig, read_yaml(FOLDER / f"{name}.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_a_config_is_complete(name):
    """It loads and round-trips, its plug-ins take its keys, the header says how to run it and the run has its name."""
    config, header = load(name), (FOLDER / f"{name}.yaml").read_text()
    assert make(TrainConfig, yaml.safe_load(dump(config))) == config
    assert config.run == Path("runs") / name
    assert f"train_dit.py configs/{name}.yaml" in header and "Cost:" in header
    assert DATASETS.filled(config.data, "data").name == config.data.name
    for loss in config.losses:
        LOSSES.filled(loss, "losses")


@pytest.mark.parametrize("name", [name for name in NAMES if not name.startswith("digits")])
def test_a_configs_models_fit_together(name):
    """On the meta device: shapes, passes, heads and layers of student and teacher."""
    config = load(name)
    student = meta.build(config.student, "student")
    assert (config.teacher is None) == (config.estimate.teacher is None) == (not config.losses)
    task = TASKS.build(config.task, "task")
    assert ("masked" in task.passes) == hasattr(student, "mask_token")
    checks.passes(task, [LOSSES.build(plugin, "losses") for plugin in config.losses])
    if config.estimate.teacher is None:
        return
    teacher = meta.build(config.estimate.teacher, "teacher")
    own, other = student.config, teacher.config
    for key in ("sample_size", "patch_size", "in_channels", "num_classes", "learn_sigma"):
        assert getattr(own, key) == getattr(other, key)
    for plugin in config.losses:
        loss = LOSSES.build(plugin, "losses")
        if isinstance(loss, SHD):
            assert other.num_attention_heads > own.num_attention_heads
            pairs = layer_map(list(own_layers(teacher)), list(own_layers(student)), loss.layers)
            assert set(pairs) == set(own_layers(student))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in SOON_COUNTED else pytest.mark.slow)
        for name in NAMES
        if not name.startswith("digits")
    ],
)
def test_a_header_tells_what_is_counted(name):
    config, header = load(name), (FOLDER / f"{name}.yaml").read_text().replace(",", "")
    stand_in = config.estimate.teacher
    teacher = None if stand_in is None else meta.build(stand_in, "teacher")
    student = meta.build(config.student, "student")
    images = config.micro_batch_size or config.batch_size
    found = step_operations(step_shape(config, images), student, teacher)
    told = re.search(r"Cost: (\S+) GFLOP an image (\S+) EFLOP in all: (\S+) A100 or (\S+) H100 hours", header)
    assert told is not None
    check_costs(config, found, told.groups())
    alone = step_memory(step_shape(config, images), student, teacher).total / 2**30
    told = re.search(r"Memory by count: (\S+) GiB (?:for|with micro batches of) (\d+)", header)
    assert told is not None and (alone, images) == (pytest.approx(float(told[1]), abs=0.06), int(told[2]))
    if config.micro_batch_size is not None:
        return
    share = config.batch_size // PROCESSES
    each = step_memory(step_shape(config, share), student, teacher).replicated / 2**30
    told = re.search(r"one GPU (\S+) for (\d+) on each of 8", header)
    assert told is not None and (each, share) == (pytest.approx(float(told[1]), abs=0.06), int(told[2]))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flux1_dev_to_12_blocks", "sd35_medium_half_heads"])
def test_a_header_of_text_to_image_tells_what_is_counted(name):
    """At 1024 pixels, without the hub; the page has the same hours, in tens."""
    file = FOLDER / "text_to_image" / f"{name}.yaml"
    config = make(TrainConfig, {**read_yaml(file), "dry_run": True})
    counted = dry_run(replace(config, estimate=replace(config.estimate, measure=False)))
    whole = counted.operations.executed * config.batch_size * config.steps
    found = hours(whole, peaks("bf16")["H100"], config.estimate.mfu)
    told = re.search(r"Cost: (\S+) H100-hours", file.read_text().replace(",", ""))
    assert told is not None and float(told[1]) == pytest.approx(found, rel=0.01)
    page = (FOLDER.parent / "docs" / "text-to-image.md").read_text()
    assert f"| {round(found, -1):,.0f} for {config.steps:,} steps" in page


@pytest.mark.parametrize(("control", "name"), list(CONTROLS.items()))
def test_a_control_run_differs_in_its_losses_only(control, name):
    ours, other = resolve(load(control)), resolve(load(name))
    assert {key for key in ours if ours[key] != other[key]} <= {"run", "losses", "teacher", "estimate"}
    terms = [term["name"] for term in ours["losses"]]
    assert "shd" not in terms and "shd" in [term["name"] for term in other["losses"]]


@pytest.mark.parametrize(("name", "teacher"), list(TEACHERS.items()))
def test_a_teacher_is_what_its_config_trains(name, teacher):
    ours, theirs = load(name), load(teacher)
    assert (ours.teacher, ours.estimate.teacher, ours.data) == (str(theirs.run), theirs.student, theirs.data)


@pytest.mark.parametrize(("name", "machines", "gpus"), [("1_gpu", 1, 1), ("8_gpus", 1, 8), ("64_gpus", 8, 64)])
def test_an_accelerate_config_is_read_by_accelerate(name, machines, gpus):
    file = FOLDER / "accelerate" / f"{name}.yaml"
    found = load_config_from_file(str(file))
    assert (found.num_machines, found.num_processes) == (machines, gpus)
    assert str(found.distributed_type).endswith("NO" if gpus == 1 else "MULTI_GPU")
    assert f"--config_file configs/accelerate/{name}.yaml" in file.read_text()


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_is_shared_out_evenly(name):
    """Over 1, 8 and 64 processes; with micro batches over 1 and 8."""
    config = load(name)
    for processes in (1, 8) if config.micro_batch_size or name.startswith("digits") else (1, 8, 64):
        assert config.batch_size % ((config.micro_batch_size or config.batch_size // processes) * processes) == 0


def test_every_plugin_of_a_config_ships():
    for name in NAMES:
        config = load(name)
        assert config.data.name in DATASETS.names() and config.student.name in FAMILIES.names()
