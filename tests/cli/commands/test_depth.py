"""dit-shd depth: redundant blocks are found, plan and student are written, and a run goes on from them."""

import json

import numpy as np
import pytest
import torch
from prompt_students import prompt_student
from runs import run
from tiny_pipelines import write_pipeline

from dit_shd.analysis.redundancy import LinearFits
from dit_shd.cli import program
from dit_shd.data.pipeline_record import read_record
from dit_shd.distillation.kept import KeptPlan
from dit_shd.models import export, loading, provenance
from dit_shd.models.families.dit import DiT
from dit_shd.models.families.mdt import MDTv2


@pytest.fixture
def deep(tmp_path):
    """A DiT of five blocks, of which the third and fourth do nothing."""
    torch.manual_seed(0)
    model = DiT(
        sample_size=8, patch_size=2, in_channels=1, num_classes=3, num_layers=5, num_attention_heads=2,
        attention_head_dim=4,
    )  # fmt: skip
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    for block in model.blocks[2:4]:
        torch.nn.init.zeros_(block.adaLN_modulation[-1].weight)
        torch.nn.init.zeros_(block.adaLN_modulation[-1].bias)
    card = "---\nlicense: cc-by-nc-nd-4.0\n---\n# A model\n"
    export.write(model, tmp_path / "deep", card, training={"task": {"timesteps": 800}})
    return tmp_path / "deep"


def test_blocks_that_do_nothing_are_found_and_a_run_begins_without_them(
    deep, shapes, values, tmp_path, capsys, monkeypatch
):
    solved, error = [], LinearFits.error
    monkeypatch.setattr(LinearFits, "error", lambda self, *run: solved.append(run) or error(self, *run))
    out = tmp_path / "plan"
    data = f"data={{name: npz, path: {shapes}}}"
    arguments = ["depth", str(deep), data, "keep=4", "samples=16", "batch_size=8", "timesteps=[300, 700]", f"out={out}"]
    assert program.main(arguments) == 0
    assert len(solved) == len(set(solved))  # a solve is most of the time
    assert "blocks.2 from blocks.2, learns from blocks.3" in capsys.readouterr().out
    plan = KeptPlan.read(out)
    assert list(plan.weights.values()) == ["blocks.0", "blocks.1", "blocks.2", "blocks.4"]
    student, teacher = loading.load(out / "student"), loading.load(deep)
    assert student.config.num_layers == 4
    assert provenance.provenance(out / "student").license == "cc-by-nc-nd-4.0"
    assert export.exported_values(str(out / "student")) == {"task": {"timesteps": 800}}
    assert torch.equal(student.blocks[3].mlp.fc1.weight, teacher.blocks[4].mlp.fc1.weight)
    x, t, labels = torch.randn(2, 1, 8, 8), torch.tensor([3, 400]), torch.tensor([0, 1])
    same = [model.eval()(x, t, labels, return_dict=False)[0] for model in (student, teacher)]
    torch.testing.assert_close(*same)  # what was left out did nothing
    assert program.main(arguments) == 2 and "exists already" in capsys.readouterr().err
    config = {
        "name": "dit",
        **{k: v for k, v in dict(teacher.config).items() if not k.startswith("_")},
        "num_layers": 4,
    }
    _, metrics = run(
        {**values, "task": {"name": "diffusion", "mask_ratio": None}},
        teacher=str(deep),
        student=config,
        losses=[{"name": "feature", "projector": "none", "layers": f"kept:{out}"}, {"name": "output"}],
        initialisation={"weights": "teacher", "layers": f"kept:{out}"},
        steps=1,
    )
    assert metrics[0]["plain/output"] == pytest.approx(0, abs=1e-10)
    assert metrics[0]["plain/feature"] == pytest.approx(0, abs=1e-10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["keep=6"], "keep: wanted 2 to 4 of the 5 blocks of blocks (runs of at most 4, longest), found 6"),
        (["keep=1"], "keep: wanted 2 to 4 of the 5 blocks of blocks"),
        (["keep=5"], "keep: blocks has 5 blocks, keep=5 leaves out none"),
        (["timesteps=[-5]"], "timesteps: wanted 0 to 799, found -5"),
        (["longest=0"], "longest: wanted a number from 1 to 1000, found 0"),
        (["blocks=layers"], "blocks: wanted one of blocks, found layers"),
        (["samples=2", "batch_size=2", "timesteps=[1]", "keep=4"], "tokens are too few"),
    ],
)
def test_what_cannot_be_is_one_line(deep, shapes, changes, message, tmp_path, capsys):
    changes = changes if "samples=2" in changes else [*changes, "samples=8"]
    data = f"data={{name: npz, path: {shapes}}}"
    assert program.main(["depth", str(deep), data, f"out={tmp_path / 'none'}", *changes]) == 2
    error = capsys.readouterr().err
    assert message in error and not (tmp_path / "none").exists()


def test_one_sample_is_too_few(deep, tmp_path, capsys):
    """Nothing would be left to judge the maps on."""
    arrays = {"hidden_states": np.zeros((1, 1, 8, 8), np.float32), "class_labels": np.zeros(1, np.int64)}
    np.savez(tmp_path / "one.npz", **arrays)
    assert program.main(["depth", str(deep), f"inputs={tmp_path / 'one.npz'}", f"out={tmp_path / 'none'}"]) == 2
    assert "inputs: wanted 2 samples or more" in capsys.readouterr().err


@pytest.fixture
def teacher(tmp_path):
    """An MDTv2 with three blocks in each half of its encoder, and two behind it."""
    MDTv2(
        sample_size=8, patch_size=2, in_channels=1, num_classes=3, num_layers=8, decode_layer=2,
        num_attention_heads=2, attention_head_dim=4,
    ).save_pretrained(tmp_path / "teacher")  # fmt: skip
    return tmp_path / "teacher"


def test_where_no_student_can_be_made_the_plan_is_kept(teacher, shapes, tmp_path, caplog):
    """No key of MDTv2's config is how many blocks a half of its encoder has."""
    out = tmp_path / "plan"
    words = [f"data={{name: npz, path: {shapes}}}", "samples=16", "batch_size=8", "timesteps=[300]", f"out={out}"]
    assert program.main(["depth", str(teacher), *words, "blocks=en_inblocks", "keep=2"]) == 0
    assert KeptPlan.read(out).weights and not (out / "student").exists()
    assert "no student is written" in caplog.text


def test_of_several_lists_that_no_key_cuts_one_is_named(teacher, shapes, tmp_path, capsys):
    words = [f"data={{name: npz, path: {shapes}}}", "keep=2", f"out={tmp_path / 'plan'}"]
    assert program.main(["depth", str(teacher), *words]) == 2
    error = capsys.readouterr().err
    assert "MDTv2 has several lists of blocks, en_inblocks (3)" in error and "student=false" in error
    assert not (tmp_path / "plan").exists()
    assert program.main(["depth", str(teacher), *words, "samples=16", "batch_size=8", "student=false", "keep=1"]) == 0


def test_a_text_to_image_student_keeps_the_record_of_its_text(tmp_path):
    run = prompt_student(write_pipeline("sd3", tmp_path / "pipeline"), tmp_path / "run")
    settings = json.loads((run / "student" / "config.json").read_text())
    arrays = {
        "hidden_states": np.random.default_rng(0).normal(size=(8, settings["in_channels"], 8, 8)),
        "encoder_hidden_states": np.zeros((8, 8, settings["joint_attention_dim"])),
        "pooled_projections": np.zeros((8, settings["pooled_projection_dim"])),
    }
    np.savez(tmp_path / "in.npz", **{name: array.astype(np.float32) for name, array in arrays.items()})
    given = [f"inputs={tmp_path / 'in.npz'}", "keep=1", f"out={tmp_path / 'kept'}"]
    assert program.main(["depth", str(run / "student"), *given]) == 0
    assert read_record(tmp_path / "kept" / "student") == read_record(run / "student") is not None
