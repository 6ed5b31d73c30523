"""A teacher that does not do what we think is refused before anything is written; a good one never is."""

import logging
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from runs import contents, run
from torch import nn
from two_process_jobs import read, said

from dit_shd.core.errors import UserError
from dit_shd.core.plugins import Plugin
from dit_shd.data.datasets import DATASETS
from dit_shd.diffusion import teacher_check
from dit_shd.diffusion.process import Ddpm
from dit_shd.diffusion.schedule import Schedule
from dit_shd.models import loading
from dit_shd.models.families import mdt

CPU = torch.device("cpu")
SCHEDULE = Schedule.linear()
PROCESS = Ddpm(SCHEDULE)


@cache
def digits():
    return DATASETS.build(Plugin("digits"))


@cache
def teacher():
    return loading.load("asset:digits_teacher").eval().requires_grad_(False)


def look(model, data=None, seed=0):
    return teacher_check.measure(model, data or digits(), PROCESS, seed, CPU)


class Other(nn.Module):
    """The digits' teacher, with what it is given or gives turned into something else."""

    def __init__(self, output=lambda x_t, t, noise: noise, labels=lambda y: y, time=lambda t: t):
        super().__init__()
        self.inner, self.config = teacher(), teacher().config
        self.change = output, labels, time

    def forward(self, x_t, t, class_labels, return_dict):
        output, labels, time = self.change
        none = class_labels == 10
        given = torch.where(none, 10, labels(torch.where(none, 0, class_labels)))
        noise, v = self.inner(x_t, time(t), class_labels=given, return_dict=False)[0].chunk(2, dim=1)
        return (torch.cat([output(x_t, t, noise), v], dim=1),)


class Scaled:
    """The digits times a number, plus another."""

    classes, shape = 10, (1, 28, 28)

    def __init__(self, by, plus=0.0):
        self.by, self.plus = by, plus

    def __len__(self):
        return len(digits())

    def batch(self, indices, draws):
        sample = digits().batch(indices, draws)
        return {**sample, "latents": sample["latents"] * self.by + self.plus}


def x_0(x_t, t, noise):
    return SCHEDULE.predict_x_0(x_t, noise, t)


def velocity(x_t, t, noise):
    """Of the same process: sqrt(a) noise - sqrt(1 - a) x_0 (Salimans & Ho 2022)."""
    kept = SCHEDULE.at(SCHEDULE.alphas_cumprod, t)
    return kept.sqrt() * noise - (1 - kept).sqrt() * x_0(x_t, t, noise)


def random_teacher():
    torch.manual_seed(0)
    model = mdt.MDTv2(**{k: v for k, v in teacher().config.items() if not k.startswith("_")})
    for p in model.parameters():
        nn.init.normal_(p, std=0.03)
    return model.eval()


def levels_of(snr):
    """The timesteps at which another schedule has the noise levels of ours, given by its SNR."""
    return torch.from_numpy(np.abs(np.log(SCHEDULE.snr)[None] - np.log(snr)[:, None]).argmin(1))


STABLE = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
"""Of Stable Diffusion's schedule (Rombach et al. 2022)."""
COSINE = np.cos((np.arange(1000) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
"""Nichol & Dhariwal 2021, eq. 17."""
WRONG = {
    "velocity": lambda: Other(velocity),
    "flow": lambda: Other(lambda x_t, t, noise: noise - x_0(x_t, t, noise)),
    "x_0": lambda: Other(x_0),
    "minus": lambda: Other(lambda x_t, t, noise: -noise),
    "zero": lambda: Other(lambda x_t, t, noise: noise * 0),
    "SD's schedule": lambda: Other(time=lambda t: levels_of(STABLE / (1 - STABLE))[t]),
    "cosine": lambda: Other(time=lambda t: levels_of((COSINE / (1 - COSINE))[1:])[t.clamp(max=998)]),
    "a schedule of 100 steps": lambda: Other(time=lambda t: t // 10),
    "random": random_teacher,
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_noise_prediction_of_ours(name):
    found = look(WRONG[name]())
    assert "no better than a linear" in found.fault() or "another size" in found.fault()


@pytest.mark.parametrize(("by", "plus"), [(5.49, 0), (1 / 5.49, 0), (1.4, 0), (0.7, 0), (0.5, 0.5), (-1, 0)])
def test_latents_of_another_scale_or_range(by, plus):
    """1/0.18215 either way, the factor between two autoencoders, pixels in [0, 1], inverted ones."""
    assert "linear" in look(teacher(), Scaled(by, plus)).fault()


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (lambda y: (y + 1) % 10, "labels make it worse"),
        (lambda y: torch.tensor([7, 2, 5, 8, 0, 3, 1, 9, 4, 6])[y], "labels make it worse"),
        (lambda y: y * 0, "labels make it worse"),
        (lambda y: y * 0 + 10, "no better under the true labels"),
    ],
)
def test_classes_in_another_order_or_none(labels, reason):
    assert reason in look(Other(labels=labels)).fault()


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "held-out", "three classes"])
def test_a_good_teacher_is_taken(kind):
    data = DATASETS.build(Plugin("digits", {"split": "validation"})) if kind == "held-out" else digits()
    if kind == "three classes":
        data = Three(kept=True)
    model = loading.load("asset:digits_teacher").eval().bfloat16() if kind == "bfloat16" else teacher()
    for seed in range(3):
        found = look(model, data, seed)
        assert found.fault() is None, found.summary()
        assert found.images <= 192


class Three:
    """The digits 3, 5 and 9, as a set of their own (0, 1, 2) or with the labels they had."""

    shape = (1, 28, 28)

    def __init__(self, kept):
        self.classes, self.kept = (10 if kept else 3), kept
        self.at = np.flatnonzero(np.isin(digits().labels(), [3, 5, 9]))

    def __len__(self):
        return len(self.at)

    def batch(self, indices, draws):
        sample = digits().batch(self.at[indices], draws)
        if self.kept:
            return sample
        return {**sample, "labels": torch.searchsorted(torch.tensor([3, 5, 9]), sample["labels"])}


def test_classes_that_were_renumbered():
    """3, 5 and 9 became 0, 1 and 2: the labels of all are wrong."""
    assert "labels make it worse" in look(teacher(), Three(kept=False)).fault()


def test_the_linear_prediction_is_the_least_squares_one():
    """By numpy's lstsq, of two channels of other size and mean apart."""
    r = np.random.default_rng(0)
    x_0, noise = r.normal([1, -3], [2, 0.3], (40, 6, 6, 2)).transpose(0, 3, 1, 2), r.normal(size=(40, 2, 6, 6))
    x_t, levels = 0.6 * x_0 + 0.8 * noise, torch.arange(40) % 6
    batch = type("B", (), {"x_t": torch.tensor(x_t), "noise": torch.tensor(noise)})()
    sums = teacher_check.Sums.empty(2)
    for part in (slice(0, 12), slice(12, 40)):
        piece = type("B", (), {"x_t": batch.x_t[part], "noise": batch.noise[part]})()
        sums.add(piece, piece.noise * 0.5, levels[part])
    for level in range(6):
        errors = []
        for c in range(2):
            x, e = x_t[levels == level][:, c].ravel(), noise[levels == level][:, c].ravel()
            design = np.stack([x, np.ones_like(x)], 1)
            errors.append(np.square(e - design @ np.linalg.lstsq(design, e, rcond=None)[0]).mean())
        assert sums.linear()[level] == pytest.approx(np.mean(errors), rel=1e-9)
    assert sums.measurement(40).scale.tolist() == pytest.approx([2.0] * 6)


def test_wrong_labels_are_others_that_the_teacher_knows():
    batch = teacher_check._draw_images(digits(), PROCESS, 0, 0)
    wrong = teacher_check._wrong_labels([1, 4, 6, 9], 0, batch)
    assert set(wrong.tolist()) == {1, 4, 6, 9}
    assert not (wrong == batch.labels).any()
    assert torch.equal(wrong, teacher_check._wrong_labels([1, 4, 6, 9], 0, batch))


# In a run


def test_a_run_is_refused_before_anything_is_written(values):
    with pytest.raises(UserError, match=r"no better than a linear .*velocity.*\(noise error .* images\)") as error:
        run({**values, "check_teacher": "refuse"})
    assert "\n" not in str(error.value)
    assert "check_teacher=warn" in str(error.value)
    assert not Path(values["run"]).exists()
    with pytest.raises(UserError, match="no better than a linear"):  # the default
        run({k: v for k, v in values.items() if k != "check_teacher"})


def test_a_warning_and_no_look_leave_the_same_bytes(values, tmp_path, caplog):
    """Bit for bit but for the key itself; and a run that has begun is not looked at again."""
    caplog.set_level(logging.INFO, "dit_shd")
    found = {}
    for choice in ("warn", "no"):
        caplog.clear()
        config, _ = run({**values, "run": str(tmp_path / choice), "check_teacher": choice}, steps=2)
        files = contents(config.run).items()
        found[choice] = {name: data.replace(b"check_teacher: warn", b"check_teacher: 'no'") for name, data in files}
        said = [record.getMessage() for record in caplog.records if "linear" in record.getMessage()]
        assert len(said) == (2 if choice == "warn" else 0), "the figures, and the warning"
    assert found["warn"] == found["no"]
    run({**values, "run": str(tmp_path / "no"), "check_teacher": "refuse"}, steps=3)


def test_a_run_begun_by_an_older_version_goes_on(values):
    config, _ = run(values, steps=2)
    file = config.run / "config.yaml"
    told = yaml.safe_load(file.read_text())
    del told["check_teacher"]
    file.write_text(yaml.safe_dump(told))
    assert len(run({k: v for k, v in values.items() if k != "check_teacher"}, steps=3)[1]) == 1


@pytest.mark.parametrize("why", ["label_dropout is 1", "it has one class"])
def test_labels_are_not_looked_at_where_there_are_none(values, tmp_path, caplog, why):
    caplog.set_level(logging.INFO, "dit_shd")
    changes = {"label_dropout": 1.0}
    if "class" in why:
        np.savez(tmp_path / "one.npz", np.load(values["data"]["path"])["arr_0"], np.zeros(60, int))
        model = mdt.MDTv2(**{**dict(loading.load(values["teacher"]).config), "num_classes": 1})
        model.save_pretrained(tmp_path / "one")
        changes = {"data": {"name": "npz", "path": str(tmp_path / "one.npz")}, "teacher": str(tmp_path / "one")}
    run({**values, **changes, "check_teacher": "warn"}, steps=1)
    assert f"labels were not compared, since {why}" in caplog.text
    assert "standard errors" not in caplog.text


@pytest.mark.two_processes("refusal")
def test_two_processes_refuse_alike(by_two):
    """With the figures of one process, and by a line in each."""
    assert said(by_two) == [[read(by_two, "alone.json")]] * 2
    assert not (by_two / "run").exists()
