"""The task of a small text, a batch of it, and what its tokens cost a model, naively."""

import torch

from dit_shd.core.plugins import Plugin
from dit_shd.core.rng import Draws
from dit_shd.data.datasets import DATASETS
from dit_shd.tasks.language_modeling import LanguageModeling, TextEvaluation


def task(path, student=None, evaluation=None, separate=True, prompt_rows=False, **data):
    data = {"path": path, "length": 16, "document": "line", **data}
    made = LanguageModeling(separate, prompt_rows, evaluation or TextEvaluation())
    made.use(DATASETS.build(Plugin("text", data)), student)
    return made


def batch_of(made, step=0, positions=range(8), size=8):
    (batch,) = made.draw(Draws(0, step, positions, size))
    return batch


def naive_nats(model, rows, prompts=None):
    """-log p of every token but the first of some documents, each run by itself; those of prompts left out."""
    nats = []
    for row, skipped in zip(rows, prompts or [0] * len(rows)):
        logits = model(input_ids=torch.tensor([row])).logits[0].double()
        each = -logits.log_softmax(-1)[torch.arange(len(row) - 1), row[1:]]
        nats += each[max(0, skipped - 1) :].tolist()
    return nats
