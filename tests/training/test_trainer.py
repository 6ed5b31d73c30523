"""The loop: what it learns, writes and refuses; the laws of its runs are in tests/tasks/test_laws.py."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from runs import run, weights
from safetensors.torch import load_file

from dit_shd.core.config import make
from dit_shd.core.errors import UserError
from dit_shd.models import loading
from dit_shd.training.config import TrainConfig
from dit_shd.training.trainer import Trainer


def test_distillation_learns_and_writes_all_that_sampling_needs(values):
    config, metrics = run(values, steps=25, checkpoint_every=10)
    names = set(metrics[0])
    assert {
        "loss",
        "plain/noise",
        "plain/variational",
        "plain/output",
        "plain/shd",
        "masked/output",
        "grad_norm",
        "lr",
    } <= names
    assert "masked/shd" not in names
    assert {"plain/shd/alpha/de_blocks.0.attn", "plain/shd/clamped", "plain/shd/residual"} <= names
    for name in ("plain/noise", "masked/noise"):
        assert np.mean([m[name] for m in metrics[-5:]]) < 0.8 * np.mean([m[name] for m in metrics[:3]])
    lines = [json.loads(x) for x in (config.run / "metrics.jsonl").read_text().splitlines()]
    assert lines == metrics
    assert [p.name for p in sorted((config.run / "checkpoints").iterdir())] == [
        "step_00000020",
        "step_00000025",
    ]
    card = (config.run / "student" / "README.md").read_text()
    assert "for 25 steps" in card
    assert "mask_ratio: 0.3" in card
    assert loading.load(config.run).config.num_attention_heads == 2


def test_loss_total_is_the_weighted_sum_of_its_terms(values):
    _, (m, *_) = run(values, steps=1)
    total = sum(m[f"{p}/{t}"] for p in ("plain", "masked") for t in ("noise", "variational", "output"))
    assert m["loss"] == pytest.approx(total + 0.5 * m["plain/shd"], rel=1e-5)


def test_a_run_that_ends_leaves_the_group_to_the_next(values, monkeypatch):
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda *_: pytest.fail("the group is others', too"))
    run(values, steps=1)


def test_steps_may_be_raised_and_a_finished_run_is_left_alone(values):
    config, _ = run({**values, "optimizer": {"lr": 1e-2}}, steps=2)
    again, metrics = run({**values, "optimizer": {"lr": 1e-2}}, steps=3)
    assert [m["step"] for m in metrics] == [3]
    assert run({**values, "optimizer": {"lr": 1e-2}}, steps=3)[1] == []
    assert config.run == again.run


def test_plain_training_needs_no_teacher_and_ema_averages(values, tmp_path):
    plain = {**values, "losses": [], "teacher": None, "optimizer": {"name": "adamw", "lr": 1e-2}}
    config, metrics = run(plain, steps=2, checkpoint_every=1, keep_checkpoints=9)
    assert not any("shd" in k or "output" in k for k in metrics[0])
    folders = sorted((config.run / "checkpoints").iterdir())
    first, second = (load_file(f / "ema_0.9.safetensors") for f in folders)
    raw = load_file(folders[1] / "distiller.safetensors")
    for key in first:  # shadow = 0.9 shadow + 0.1 weights, without a warm-up of the rate
        torch.testing.assert_close(second[key], 0.9 * first[key] + 0.1 * raw[f"student.{key}"])


def test_rates_and_warmed_up_averages_are_those_of_their_steps(values):
    """By hand, from what is logged and saved: warm-up over two steps and half a cosine; (1 + n) / (10 + n)."""
    plain = {**values, "losses": [], "teacher": None, "mask_ratio": None, "ema_warmup": True}
    config, rows = run(plain, steps=4, checkpoint_every=1, keep_checkpoints=9)
    assert [row["lr"] for row in rows] == pytest.approx([0.005, 0.01, 0.01, 0.005])
    folders = sorted((config.run / "checkpoints").iterdir())
    averages, raw = ([load_file(f / f"{n}.safetensors") for f in folders] for n in ("ema_0.9", "distiller"))
    for n in (1, 2, 3):
        for key, before in averages[n - 1].items():
            wanted = torch.lerp(raw[n][f"student.{key}"].double(), before.double(), (1 + n) / (10 + n))
            torch.testing.assert_close(averages[n][key].double(), wanted, rtol=1e-5, atol=1e-7)


def test_a_clipped_step_is_as_long_as_the_rate_times_the_limit(values, tmp_path):
    """By plain SGD; what is logged is the norm before."""
    norms, plain = [], {**values, "losses": [], "teacher": None, "mask_ratio": None}
    for clip in (0, 1e-3):
        config = {**plain, "run": str(tmp_path / str(clip)), "optimizer": {"lr": 1e-2, "clip": clip}}
        trainer = Trainer.from_config(make(TrainConfig, config))
        trainer.state = replace(trainer.state, optimizer=torch.optim.SGD(trainer.student.parameters(), lr=9.0))
        before = [p.detach().double() for p in trainer.student.parameters()]
        steps = trainer.run_steps()
        norms.append(next(steps).metrics["grad_norm"])
        moved = [(p.detach() - x).square().sum() for p, x in zip(trainer.student.parameters(), before)]
        steps.close()
        assert sum(moved).sqrt().item() == pytest.approx(1e-2 * (clip or norms[0]), rel=1e-3)
    assert norms[0] == norms[1] > 0.01


def test_no_masked_pass(values):
    _, metrics = run({**values, "mask_ratio": None}, steps=1)
    assert not any(k.startswith("masked") for k in metrics[0])


def test_shd_in_the_masked_pass(values):
    losses = [{"name": "shd", "passes": ["plain", "masked"], "method": "constant", "measure": "mse"}]
    _, metrics = run({**values, "losses": losses}, steps=1)
    assert metrics[0]["masked/shd"] > 0
    assert "masked/shd/mse/sideblocks.0.attn" in metrics[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher": None}, r"losses need a teacher, .*; found output, shd"),
        ({"losses": []}, "was given, but losses is empty, so nothing would be learned from it"),
        ({"teacher": "nowhere"}, "wanted a run folder"),
        ({"teacher": "asset:nobody"}, "no such model"),
        ({"steps": 0}, "steps: wanted 1 or more, found 0"),
        ({"batch_size": 7, "micro_batch_size": 2}, "not a multiple"),
        ({"mask_ratio": 0.9}, r"task\.mask_ratio: wanted a number from 0 to 0.8, found 0.9"),
        ({"ema": 1.5}, "ema: wanted a number from 0 to 1"),
        ({"label_dropout": -0.1}, r"task\.label_dropout: wanted"),
        ({"micro_batch_size": 0}, "micro_batch_size: wanted"),
        ({"seed": 2**64}, "seed: wanted"),
        ({"diffusion_steps": 20}, r"task\.timesteps: wanted 21 to 1,000,000"),
        ({"optimizer": {"lr": -1}}, "optimizer.lr: wanted"),
        ({"optimizer": {"betas": [0.9, 0.99]}}, "adan wanted 3 numbers"),
        ({"precision": "fp16"}, "fp16 needs a GPU"),
        ({"tracker": "nosuchtracker"}, "tracker: 'nosuchtracker' is not installed"),
        ({"losses": [{"name": "shd", "layers": {}}]}, "the map is empty"),
        ({"losses": [{"name": "shd", "chunk_mib": 0}]}, "memory budget above 0"),
        ({"losses": [{"name": "shd", "weight": -1}]}, "weight: wanted 0 or more"),
        ({"run": "/dev/null/run"}, "cannot be made a run folder"),
        ({"data": {"name": "npz", "path": "no.npz"}}, "no such file"),
    ],
)
def test_configs_that_cannot_work_leave_nothing_behind(values, changes, message):
    with pytest.raises(UserError, match=message):
        run({**values, **changes})
    assert not os.path.exists(values["run"])


@pytest.mark.parametrize(
    ("student", "message"),
    [
        ({"num_attention_heads": 8}, "student has 8 heads .* teacher only 4"),
        ({"patch_size": 4}, "hides the same tokens of both models, and the teacher has 16, the student 4"),
        ({"in_channels": 3}, r"takes latents of shape \(3, 8, 8\), the data's are \(1, 8, 8\)"),
        ({"num_classes": 2}, "knows 2 classes, the data has 3"),
    ],
)
def test_models_that_do_not_fit_leave_nothing_behind(values, student, message):
    with pytest.raises(UserError, match=message):
        run({**values, "student": {**values["student"], **student}, "losses": [{"name": "shd"}]})
    assert not os.path.exists(values["run"])


def test_a_teacher_that_is_not_finite_is_refused(values, teacher, tmp_path):
    model = loading.load(teacher)
    with torch.no_grad():
        model.pos_embed[0, 0, 0] = float("nan")
    model.save_pretrained(tmp_path / "nan")
    with pytest.raises(UserError, match=r"nan: its weights are not finite .* pos_embed"):
        run({**values, "teacher": str(tmp_path / "nan")})


def test_the_saved_config_holds_every_default(values):
    config, _ = run(values, steps=1)
    text = (config.run / "config.yaml").read_text()
    assert "temperature: 1.0" in text
    assert "method: pairwise" in text


def test_clipping_decay_and_weighting_have_an_effect(values, tmp_path):
    def after(name, **changes):
        config, metrics = run({**values, **changes, "run": str(tmp_path / name)}, steps=2)
        return weights(config.run)["pos_embed"], metrics[0]["plain/noise"]

    adamw = {"name": "adamw", "lr": 1e-2}
    base, noise = after("base", optimizer=adamw)
    assert not torch.equal(base, after("decayed", optimizer={**adamw, "weight_decay": 1.0})[0])
    adan = {"name": "adan", "lr": 1e-2}
    assert not torch.equal(
        after("adan", optimizer=adan)[0], after("clip", optimizer={**adan, "clip": 1e-3, "eps": 1e-3})[0]
    )
    assert after("gamma", min_snr_gamma=None, optimizer=adamw)[1] > noise
    assert not torch.equal(base, after("hot", optimizer=adamw, losses=[{"name": "shd", "temperature": 4.0}])[0])


def test_a_masked_loss_without_a_masked_pass_is_refused(values):
    with pytest.raises(UserError, match=r"losses\.0\.passes: wanted one or more of plain, .*found masked"):
        run({**values, "losses": [{"name": "shd", "passes": ["masked"]}], "mask_ratio": None})


def test_dropout_of_a_student_is_resumed(values, tmp_path, monkeypatch):
    """Drawn from torch's generator: a run that stopped draws what one that did not does, and every step draws anew."""
    sizes = {"sample_size": 8, "patch_size": 2, "in_channels": 1, "out_channels": 2, "num_layers": 2, "dropout": 0.3}
    sizes |= {"num_attention_heads": 2, "attention_head_dim": 8, "num_embeds_ada_norm": 3}
    student = {"name": "diffusers", "transformer": "DiTTransformer2DModel", "config": sizes}
    values |= {"student": student, "teacher": None, "losses": [], "task": {"name": "diffusion", "mask_ratio": None}}
    masks, dropout = [], torch.nn.functional.dropout

    def noted(x, *args, **kwargs):
        dropped = dropout(x, *args, **kwargs)
        if not x.is_meta and x.requires_grad:
            masks.append(dropped == 0)
        return dropped

    run(values, run=str(tmp_path / "parts"), steps=2)
    monkeypatch.setattr(torch.nn.functional, "dropout", noted)
    _, rest = run(values, run=str(tmp_path / "parts"), steps=4)
    resumed, masks[:] = list(masks), []
    _, whole = run(values, run=str(tmp_path / "whole"), steps=4)
    assert [row["loss"] for row in rest] == [row["loss"] for row in whole[2:]]
    assert len(masks) == 2 * len(resumed) > 0
    assert all(torch.equal(one, other) for one, other in zip(masks[len(resumed) :], resumed))
    assert not torch.equal(masks[0], resumed[0])


def test_the_tasks_own_terms_weigh_as_the_config_says(values):
    _, (m, *_) = run({**values, "base_weight": 0.25}, steps=1)
    base = sum(m[f"{p}/{t}"] for p in ("plain", "masked") for t in ("noise", "variational"))
    learned = sum(m[f"{p}/output"] for p in ("plain", "masked")) + 0.5 * m["plain/shd"]
    assert m["loss"] == pytest.approx(0.25 * base + learned, rel=1e-5)
