"""Teachers that know the answer, or a part of it, on data whose captions say what is in the picture."""

import pytest
import torch
from torch import nn

from dit_shd.data.datasets import Dataset
from dit_shd.data.text_condition import TextCondition
from dit_shd.diffusion.adapters.sd3 import SD3
from dit_shd.diffusion.flow import TimestepDensity
from dit_shd.diffusion.text_process import process_of
from dit_shd.diffusion.text_teacher_check import TextTeacherCheck

KINDS = 7
torch.manual_seed(0)
PICTURES = torch.randn(KINDS, 2, 4, 4)
"""One for each caption; a caption's embedding is its number."""


class Pictures(Dataset):
    shape, fields, classes = (2, 4, 4), frozenset({"latents", "text", "text_mask"}), 1

    def __len__(self):
        return 100

    def batch(self, indices, draws):
        numbers = torch.from_numpy(indices) % KINDS
        text = numbers.float()[:, None, None]
        return {"latents": PICTURES[numbers], "text": text, "text_mask": torch.ones(len(numbers), 1, dtype=torch.bool)}

    def images(self):
        raise NotImplementedError

    def labels(self):
        raise NotImplementedError


class Knows(SD3):
    """Predicts the velocity that leads to some picture, times a factor."""

    def __init__(self, factor=1.0, shift=0, blind=False):
        self.factor, self.shift, self.blind = factor, shift, blind

    def predict(self, model, x, time, text, guidance=None):
        s = time.view(-1, 1, 1, 1)
        numbers = (text.embeddings[:, 0, 0].long() + self.shift) % KINDS
        known = text.embeddings[:, 0, 0] >= 0
        guess = torch.where(known.view(-1, 1, 1, 1), PICTURES[numbers], torch.zeros_like(x))
        if self.blind:
            guess = blindly(x, time)
        return self.factor * (x - guess) / s


class Spoils(Knows):
    """Predicts a little more of the picture under its caption than without, and in noise a mistake besides."""

    mistake = torch.randn(2, 4, 4, generator=torch.Generator().manual_seed(5))

    def predict(self, model, x, time, text, guidance=None):
        s, numbers = time.view(-1, 1, 1, 1), text.embeddings[:, 0, 0].long() % KINDS
        told = 0.7 * blindly(x, time) + 0.3 * PICTURES[numbers] + 0.41 * (s > 0.4) * self.mistake
        return (x - torch.where((text.embeddings >= 0)[..., None], told, blindly(x, time))) / s


def blindly(x, time):
    """The mean of the pictures that it may be, whatever the caption says."""
    s = time.view(-1, 1, 1, 1)
    distance = ((x[:, None] - (1 - s[:, None]) * PICTURES) ** 2).flatten(2).sum(2)
    return torch.einsum("bk,kcyx->bcyx", (-distance / (2 * time[:, None] ** 2)).softmax(1), PICTURES)


def fault_of(adapter, captions=True):
    process = process_of("flow", {}, TimestepDensity(), "none", None, 2)
    empty = TextCondition.of(torch.full((1, 1, 1), -1.0))
    check = TextTeacherCheck(process, Pictures(), 0, torch.device("cpu"), adapter, empty)
    ((message, fault),) = check.findings(nn.Linear(1, 1), captions)
    assert message.startswith("teacher: noise error ")
    return fault


def test_a_good_teacher_has_no_fault():
    assert fault_of(Knows()) is None
    assert fault_of(Knows(), captions=False) is None


@pytest.mark.parametrize(
    ("adapter", "words"),
    [
        (Knows(factor=-1.0), "no better than a linear prediction's"),
        (Knows(factor=0.0), "no better than a linear prediction's"),
        (Knows(shift=1), "no better than a linear prediction's"),
        (Knows(blind=True), "no better under the true captions than under others"),
        (Spoils(), "the captions make it worse than none"),  # which two rounds leave open
    ],
)
def test_faults(adapter, words):
    assert words in fault_of(adapter)
