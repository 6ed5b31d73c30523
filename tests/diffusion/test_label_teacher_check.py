"""A class-conditional teacher that does not do what we think is found out; a good one never is."""

from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from dit_shd.core.plugins import Plugin
from dit_shd.data.datasets import DATASETS, Dataset
from dit_shd.diffusion import label_teacher_check
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
    return check(data or digits(), seed).measure(model)


def check(data, seed=0):
    return label_teacher_check.LabelTeacherCheck(PROCESS, data, seed, CPU)


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

    classes, shape, indices = 10, (1, 28, 28), Dataset.indices

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

    shape, indices = (1, 28, 28), Dataset.indices

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


def test_wrong_labels_are_others_that_the_teacher_knows():
    images, labels = check(digits()).draw(0)
    wrong = label_teacher_check._wrong_labels([1, 4, 6, 9], 0, images, labels)
    assert set(wrong.tolist()) == {1, 4, 6, 9}
    assert not (wrong == labels).any()
    assert torch.equal(wrong, label_teacher_check._wrong_labels([1, 4, 6, 9], 0, images, labels))
