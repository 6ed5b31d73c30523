"""The loop: shared batches, resuming bit for bit, equivalences, what it writes and what it refuses."""

import json
import os

import numpy as np
import pytest
import torch
from runs import contents, diffusion, drawn, rows, run, weights
from safetensors.torch import load_file

from dit_shd.core.config import make
from dit_shd.core.errors import UserError
from dit_shd.core.plugins import Plugin
from dit_shd.core.rng import Draws
from dit_shd.data.datasets import DATASETS
from dit_shd.diffusion.denoiser import NO_LABEL
from dit_shd.models import loading
from dit_shd.models.families import mdt
from dit_shd.tasks.diffusion import Diffusion
from dit_shd.training.config import TrainConfig
from dit_shd.training.trainer import Trainer, train


def source(shapes, batch_size=8, **changes):
    """What a run draws, by step and positions: its passes by name."""
    data = DATASETS.build(Plugin("npz", {"path": str(shapes), "flip": True}))
    task = diffusion(data, **{"label_dropout": 0.3, "mask_ratio": 0.3, **changes})
    return lambda step, positions: drawn(task, step, positions, seed=3, batch_size=batch_size)


def test_batches_are_pure_functions_of_step_and_position(shapes):
    whole = source(shapes)(5, range(8))
    assert list(whole) == ["plain", "masked"]
    parts = [source(shapes)(5, r) for r in (range(3), range(3, 8))]
    for name, batch in whole.items():
        for field in ("x_0", "noise", "x_t", "t", "labels", "indices"):
            halves = torch.cat([getattr(p[name], field) for p in parts])
            assert torch.equal(getattr(batch, field), halves), field
    assert torch.equal(whole["masked"].keep, torch.cat([p["masked"].keep for p in parts]))


def test_the_two_passes_share_images_and_time_but_not_noise(shapes):
    plain, masked = source(shapes, label_dropout=0.5)(0, range(8)).values()
    assert torch.equal(plain.x_0, masked.x_0)
    assert torch.equal(plain.t, masked.t)
    assert not torch.equal(plain.noise, masked.noise)
    assert not torch.equal(plain.labels, masked.labels)
    assert plain.keep is None
    assert masked.keep.shape[1] + 1 >= 16 * 0.5
    assert masked.keep.shape[1] <= 16 * 0.7
    assert all(len(set(row.tolist())) == len(row) for row in masked.keep)


def test_every_epoch_visits_each_sample_once(shapes):
    s = source(shapes)
    seen = np.concatenate([s(step, range(8))["plain"].indices for step in range(15)])  # 120 = two epochs of 60
    assert sorted(seen[:60]) == list(range(60))
    assert sorted(seen[60:]) == list(range(60))
    assert list(seen[:60]) != list(seen[60:])


def test_labels_are_dropped_at_the_asked_rate(shapes):
    batch = source(shapes, label_dropout=0.25, batch_size=2000)(0, range(2000))["plain"]
    assert abs((batch.labels == NO_LABEL).float().mean().item() - 0.25) < 0.04


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


def test_resuming_is_bit_identical(values, tmp_path):
    straight, _ = run(values, steps=6, run=str(tmp_path / "a"))
    broken = make(TrainConfig, {**values, "steps": 6, "run": str(tmp_path / "b")})
    for step in train(broken):
        if step.number == 5:  # checkpoint at 4; the fifth step is lost and logged
            break
    resumed = Trainer.from_config(broken)
    assert resumed.first_step == 4
    list(resumed.run_steps())
    assert contents(straight.run) == contents(broken.run)


def test_steps_may_be_raised_and_a_finished_run_is_left_alone(values):
    config, _ = run({**values, "optimizer": {"lr": 1e-2}}, steps=2)
    again, metrics = run({**values, "optimizer": {"lr": 1e-2}}, steps=3)
    assert [m["step"] for m in metrics] == [3]
    assert run({**values, "optimizer": {"lr": 1e-2}}, steps=3)[1] == []
    assert config.run == again.run


def test_micro_batches_equal_the_whole_batch(values, tmp_path):
    _, a = run(values, run=str(tmp_path / "a"), steps=3)
    _, b = run(values, run=str(tmp_path / "b"), steps=3, micro_batch_size=2)
    assert len(a) == len(b) == 3
    for x, y in zip(a, b):
        assert x["loss"] == pytest.approx(y["loss"], rel=1e-5)
        assert x["grad_norm"] == pytest.approx(y["grad_norm"], rel=1e-3)


@pytest.mark.two_processes("training")
def test_two_processes_equal_one(by_two):
    """Batch 8 = 2 x 4; the world size is asserted in each process."""
    one, two = (rows(by_two / "plain" / name) for name in ("one", "two"))
    assert [m["step"] for m in two] == [1, 2, 3]
    for x, y in zip(one, two):
        assert x["loss"] == pytest.approx(y["loss"], rel=1e-4)
        assert x["plain/shd"] == pytest.approx(y["plain/shd"], rel=1e-4)
        assert x["grad_norm"] == pytest.approx(y["grad_norm"], rel=1e-3)


def test_plain_training_needs_no_teacher_and_ema_averages(values, tmp_path):
    plain = {**values, "losses": [], "teacher": None, "optimizer": {"name": "adamw", "lr": 1e-2}}
    config, metrics = run(plain, steps=2, checkpoint_every=1, keep_checkpoints=9)
    assert not any("shd" in k or "output" in k for k in metrics[0])
    folders = sorted((config.run / "checkpoints").iterdir())
    first, second = (load_file(f / "ema_0.9.safetensors") for f in folders)
    raw = load_file(folders[1] / "distiller.safetensors")
    for key in first:  # shadow = 0.9 shadow + 0.1 weights, without a warm-up of the rate
        torch.testing.assert_close(second[key], 0.9 * first[key] + 0.1 * raw[f"student.{key}"])


def test_no_masked_pass(values):
    _, metrics = run({**values, "mask_ratio": None}, steps=1)
    assert not any(k.startswith("masked") for k in metrics[0])


def test_bf16_runs_close_to_float32(values, tmp_path):
    _, a = run(values, steps=2, run=str(tmp_path / "a"))
    _, b = run(values, steps=2, run=str(tmp_path / "b"), precision="bf16")
    for key in ("plain/noise", "plain/shd", "plain/output"):
        assert a[0][key] == pytest.approx(b[0][key], rel=0.1)


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
        ({"steps": 0}, "steps: wanted a number from 1"),
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
        ({"patch_size": 4}, "4 query and 4 key tokens, .* teacher 16"),
        ({"in_channels": 3}, r"takes latents of shape \(3, 8, 8\), the data's are \(1, 8, 8\)"),
        ({"num_classes": 2}, "knows 2 classes, the data has 3"),
    ],
)
def test_models_that_do_not_fit_leave_nothing_behind(values, student, message):
    with pytest.raises(UserError, match=message):
        run({**values, "student": {**values["student"], **student}, "losses": [{"name": "shd"}]})
    assert not os.path.exists(values["run"])


def test_a_folder_of_another_config_is_refused_untouched(values):
    config, _ = run(values, steps=2)
    before = (config.run / "config.yaml").read_text()
    with pytest.raises(UserError, match=r"another config \(seed: 0 there, 5 here\)"):
        run({**values, "seed": 5})
    assert (config.run / "config.yaml").read_text() == before


def test_a_folder_that_is_no_run_is_refused(values, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="not a run folder"):
        run(values)
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["thesis.tex"]


def test_a_gradient_that_is_not_finite_stops_before_the_weights(values, monkeypatch):
    trainer = Trainer.from_config(make(TrainConfig, values))
    with torch.no_grad():
        trainer.student.pos_embed.fill_(float("inf"))
    before = trainer.student.final_layer.linear.weight.clone()
    with pytest.raises(UserError, match="not finite"):
        list(trainer.run_steps())
    assert torch.equal(before, trainer.student.final_layer.linear.weight)


def test_dropped_labels_are_each_models_own_null(shapes, teacher):
    """A model that knows more classes than the data has gets its own number for "none", not the data's."""
    model = mdt.MDTv2(**{**dict(loading.load(teacher).config), "num_classes": 7})
    seen = []
    model.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["class_labels"]), with_kwargs=True)
    batch = source(shapes, label_dropout=0.5)(0, range(8))["plain"]
    Diffusion().predict(model, batch)
    dropped = batch.labels == NO_LABEL
    assert 0 < dropped.sum() < 8
    assert seen[0][dropped].tolist() == [7] * int(dropped.sum())
    assert torch.equal(seen[0][~dropped], batch.labels[~dropped])


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


def test_the_mask_ratio_varies_up_to_a_fifth_more(shapes):
    s = source(shapes, mask_ratio=0.3, tokens=100)
    kept = {s(step, range(1))["masked"].keep.shape[1] for step in range(60)}
    assert max(kept) <= 70
    assert min(kept) >= 50
    assert max(kept) - min(kept) > 12


def test_flips_mirror_half_of_the_images(shapes):
    plain = DATASETS.build(Plugin("npz", {"path": str(shapes)}))
    flipped = DATASETS.build(Plugin("npz", {"path": str(shapes), "flip": True}))
    indices = np.arange(60)
    a, b = (d.batch(indices, Draws(0, 0, range(60), 60))["latents"] for d in (plain, flipped))
    mirrored = [torch.equal(x.flip(-1), y) and not torch.equal(x, y) for x, y in zip(a, b)]
    assert all(m or torch.equal(x, y) for m, x, y in zip(mirrored, a, b))
    assert 15 < sum(mirrored) < 45


def test_a_masked_loss_without_a_masked_pass_is_refused(values):
    with pytest.raises(UserError, match=r"losses\.0\.passes: wanted one or more of plain, .*found masked"):
        run({**values, "losses": [{"name": "shd", "passes": ["masked"]}], "mask_ratio": None})


def test_exports_are_readable_by_others(values):
    config, _ = run(values, steps=1)
    file = config.run / "student" / "diffusion_pytorch_model.safetensors"
    assert file.stat().st_mode & 0o777 == (config.run / "config.yaml").stat().st_mode & 0o777
