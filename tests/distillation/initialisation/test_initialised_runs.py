"""Runs whose student begins with its teacher's weights, or that are refused before anything is written."""

import json
import logging
import os

import pytest
import torch
from conftest import STUDENT
from language import lines
from runs import run, weights
from safetensors.torch import load_file
from small_layouts import gpt2, lm
from small_students import build
from two_process_jobs import said

from dit_shd.core.config import make
from dit_shd.core.errors import UserError
from dit_shd.training.config import TrainConfig
from dit_shd.training.trainer import Trainer, train


def teacher_run(values, **changes):
    return {**values, "initialisation": {"weights": "teacher", **changes}}


def test_a_run_begins_with_the_teachers_weights(values, teacher, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "dit_shd"):
        config, metrics = run(teacher_run(values, calibration=20), steps=1, checkpoint_every=1)
    saved = json.loads((config.run / "initialisation.json").read_text())
    assert saved["layers"]["de_blocks.1"] == "de_blocks.1"
    assert [head["of"] for head in saved["heads"]["sideblocks.0.attn"]] == [[0, 1], [2, 3]]
    assert len(saved["channels"]["stream"]) == 8
    assert len(saved["channels"]["en_inblocks.0.mlp.hidden"]) == 32
    assert "stream: 8 of 16 channels" in caplog.text
    assert "de_blocks.1 from de_blocks.1; attn heads: " in caplog.text

    trainer = Trainer.from_config(
        make(TrainConfig, {**teacher_run(values, calibration=20), "run": str(tmp_path / "again")})
    )
    first = {k: v.clone() for k, v in trainer.student.state_dict().items()}
    average, raw = (
        load_file(config.run / "checkpoints" / "step_00000001" / f"{n}.safetensors") for n in ("ema_0.9", "distiller")
    )
    for name, tensor in average.items():  # the average began with these weights, too
        torch.testing.assert_close(tensor, 0.9 * first[name] + 0.1 * raw[f"student.{name}"])
    _, random = run(values, run=str(tmp_path / "random"), steps=1)
    assert metrics[0]["plain/output"] < random[0]["plain/output"]


def test_a_dit_run_keeps_the_teachers_fixed_positions(values, tmp_path):
    """DiT's position embedding never learns; the student's is that of the channels it kept, also in its export."""
    teacher = build("dit", num_attention_heads=4)
    teacher.save_pretrained(tmp_path / "dit")
    student = {k: v for k, v in {**STUDENT, "name": "dit"}.items() if k != "decode_layer"}
    changes = {"student": student, "teacher": str(tmp_path / "dit"), "mask_ratio": None}
    config, _ = run(teacher_run({**values, **changes}, calibration=8), steps=1)
    kept = json.loads((config.run / "initialisation.json").read_text())["channels"]["stream"]
    assert torch.equal(weights(config.run)["pos_embed"], teacher.pos_embed[..., kept])


def test_a_resumed_run_is_not_begun_again(values, tmp_path):
    values = teacher_run(values, calibration=8)
    straight, _ = run(values, run=str(tmp_path / "straight"))
    broken = make(TrainConfig, {**values, "run": str(tmp_path / "broken")})
    for step in train(broken):
        if step.number == 3:  # the checkpoint is that of step 2
            break
    (broken.run / "initialisation.json").unlink()
    run(values, run=str(tmp_path / "broken"))
    assert not (broken.run / "initialisation.json").exists()
    assert all(torch.equal(v, weights(straight.run)[k]) for k, v in weights(broken.run).items())


def test_heads_follow_the_matched_plan_of_the_run(values):
    loss = {"name": "shd", "plan": "matched", "calibration": 2, "method": "joint"}
    config, _ = run(teacher_run(values, heads="merge", calibration=8), losses=[loss], steps=1)
    plans = json.loads((config.run / "calibration.json").read_text())["shd"]["plans"]
    saved = json.loads((config.run / "initialisation.json").read_text())["heads"]
    assert len(plans) == 4
    for layer, plan in plans.items():
        heads = saved[layer]
        assert [head["of"] for head in heads] == plan
        assert all(sum(head["shares"]) == pytest.approx(1, abs=1e-5) for head in heads)


@pytest.mark.two_processes("initialisation")
def test_two_processes_begin_with_the_same(by_two):
    """As one process does; no weight is far from its, and averages begin with the weights."""
    assert said(by_two) == [[2, True, [], []]] * 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": None, "losses": []}, "teacher was asked for, but the run has none"),
        (
            {"student": {**STUDENT, "attention_head_dim": 16}},
            r"pos_embed has shape \[1, 16, 32\] in the student, .* none of them larger",
        ),
        ({"student": {**STUDENT, "mlp_ratio": 16.0}}, r"en_inblocks\.0\.mlp\.fc1\.weight has shape \[128, 8\]"),
        ({"student": {**STUDENT, "num_attention_heads": 8, "attention_head_dim": 2}, "losses": []}, "8"),
        (
            {"student": {**STUDENT, "patch_size": 4}, "losses": [], "mask_ratio": None},
            r"x_embedder\.proj\.weight has shape \[8, 1, 4, 4\] in the student",
        ),
        (
            {"initialisation": {"weights": "teacher", "layers": {"de_blocks.9.attn": "de_blocks.0.attn"}}},
            "no layer 'de_blocks.9.attn'",
        ),
        ({"initialisation": {"weights": "teacher", "calibration": -1}}, "initialisation.calibration: wanted 0 or more"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(values, changes, message):
    with pytest.raises(UserError, match=message):
        run({**teacher_run(values), **changes})
    assert not os.path.exists(values["run"])


KEYS = {"model_type", "num_hidden_layers", "n_layer", "max_position_embeddings", "n_positions"}


def test_a_run_begins_with_the_heads_of_its_teacher(tmp_path):
    """LLaMA of grouped keys and GPT-2, through the trainer: calibration on packed lines, a step, the plan beside it."""
    for kind, teacher in (("llama", lm("llama")), ("gpt2", gpt2())):
        teacher = type(teacher)(config={**teacher.network.config.to_dict(), "vocab_size": 257})
        teacher.save_pretrained(tmp_path / f"{kind}_teacher")
        sizes = {"n_embd": 16, "n_head": 2, "n_inner": 64} if kind == "gpt2" else {"hidden_size": 16, "head_dim": 8}
        sizes |= {} if kind == "gpt2" else {"intermediate_size": 24, "num_attention_heads": 4, "num_key_value_heads": 2}
        config = {**{k: v for k, v in teacher.network.config.to_dict().items() if k in KEYS}, **sizes}
        values = {
            "task": {"name": "language_modeling"},
            "data": {"name": "text", "path": lines(tmp_path), "document": "line", "length": 16},
            "student": {"name": "transformers", "config": config},
            "teacher": str(tmp_path / f"{kind}_teacher"),
            "check_teacher": "no",
            "losses": [{"name": "shd"}],
            "initialisation": {"weights": "teacher", "calibration": 8},
            "batch_size": 4,
            "run": str(tmp_path / kind),
        }
        made, metrics = run(values, steps=1)
        assert metrics[0]["plain/shd"] > 0
        heads = json.loads((made.run / "initialisation.json").read_text())["heads"]
        assert [len(of) for of in heads.values()] == [4, 4] if kind == "llama" else [2, 2]
