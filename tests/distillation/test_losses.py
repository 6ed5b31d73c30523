"""Losses of a run: their weights over its steps, whether their teacher is of use, and tokens that do not count."""

import dataclasses

import pytest
import torch
from language import LLAMA, causal_lm
from small_distillers import TASK

from dit_shd import SHD
from dit_shd.core.config import make
from dit_shd.core.errors import UserError
from dit_shd.core.plugins import Plugin
from dit_shd.distillation.distiller import Distiller
from dit_shd.distillation.initialisation.initialise import Initialisation
from dit_shd.distillation.losses import LOSSES, Forward, Loss, Term
from dit_shd.distillation.losses.output import Output
from dit_shd.tasks.language_modeling import LanguageModeling, TokenBatch
from dit_shd.training import checks
from dit_shd.training.config import TrainConfig


def test_a_loss_that_returns_no_term_is_refused(student, batch):
    smooth = Smooth()
    smooth.term = lambda student, *_: student.prediction.mean()
    with pytest.raises(UserError, match=r"term\(\) wants to return Term\(value\), found Tensor"):
        Distiller(TASK, student, [smooth])(batch)


class Smooth(Loss):
    """Of the student alone."""

    reads = frozenset()

    def term(self, student, teacher, batch):
        return Term(student.prediction.square().flatten(1).mean(1))


@pytest.mark.parametrize(
    ("weight", "steps", "heaviest"),
    [
        (0.0, 9, 0.0),
        (2.0, 1, 2.0),
        ({0: 0.0, 10: 2.0}, 6, 1.0),
        ({5: 0.0, 6: 3.0, 7: 0.0}, 9, 3.0),
        ({5: 0.0, 9: 1}, 6, 0.0),
    ],
)
def test_the_heaviest_weight_of_a_run(weight, steps, heaviest):
    loss = Smooth(weight)
    assert loss.heaviest(steps) == max(loss.weight_at(step) for step in range(steps)) == heaviest


def test_a_teacher_must_be_of_use(values, caplog):
    """With all weights 0 it is run for the logs, which is said."""
    config = make(TrainConfig, values)
    checks.teaching(config, [Smooth(), Output()])
    checks.teaching(dataclasses.replace(config, losses=[], initialisation=Initialisation(weights="teacher")), [])
    checks.teaching(dataclasses.replace(config, losses=[], teacher=None), [])
    assert not caplog.records
    with pytest.raises(UserError, match="no loss reads it"):
        checks.teaching(config, [Smooth()])
    checks.teaching(config, [Output(0.0), SHD(weight={10**6: 0.0, 2 * 10**6: 1.0})])
    assert "the weights are 0 in all 4 steps (output, shd): no teacher is learned from" in caplog.text
    caplog.clear()
    checks.teaching(config, [Output(), SHD(weight=0.0)])  # for the logs, as it was said
    assert not caplog.records
    checks.teaching(config, [Output(), SHD(weight={100: 0.0, 200: 1.0})])
    assert "losses.1.weight: begins after the 4 steps of this run" in caplog.text


class Free(Loss):
    """Of what it is made with."""

    def __init__(self, term, weight=1.0):
        super().__init__(weight)
        self.of = term

    def term(self, student, teacher, batch):
        return Term(self.of(student.prediction))


@pytest.mark.parametrize(
    ("term", "message"),
    [
        (lambda x: x.square().mean(), r"wanted a value for each of 4 samples, found \[\]"),
        (lambda x: x.square().mean(2), r"wanted a value for each of 4 samples, found \[4, 12\]"),
        (lambda x: x[:3].square().flatten(1).mean(1), r"wanted a value for each of 4 samples, found \[3\]"),
        (lambda x: x.detach().square().flatten(1).mean(1), "depends on nothing that is trained: .* without a graph"),
        (lambda x: x.argmax(2).float().mean(1), "depends on nothing that is trained"),
    ],
)
def test_a_loss_that_gives_no_value_for_each_sample_or_trains_nothing_is_refused(term, message):
    student, task = causal_lm(LLAMA, 2), LanguageModeling()
    with pytest.raises(UserError, match=rf"^losses\.test_losses: {message}"):
        Distiller(task, student, [Free(term)])(padded(0), student)
    Distiller(task, student, [Free(lambda x: x.new_zeros(4))])(padded(0), student)  # nothing to say of this batch
    Distiller(task, student, [Free(lambda x: x.square().mean(2).flatten())])(padded(0), student)  # frames, windows
    if "graph" in message:  # where nothing is to be trained there is nothing to refuse
        Distiller(task, student, [Free(term, weight=0.0)])(padded(0), student)
        Distiller(task, student.requires_grad_(False), [Free(term)])(padded(0), student)


PADDED = [name for name in LOSSES.names() if name not in ("repa", "nkd", "vitkd", "lift")]
"""Losses that tokens can be learned by; the others refuse them, or want a square grid of tokens."""
OPTIONS = {"tinybert": {"heads": "mean"}, "minilmv2": {"relation_heads": 2}}


def padded(filler, rows=slice(None)):
    """Four sequences of 3 to 12 tokens of which the first few are a prompt, and then a filler."""
    tokens = torch.randint(0, 257, (4, 13), generator=torch.Generator().manual_seed(0))
    weight = torch.zeros(4, 12)
    for i, (first, last) in enumerate([(2, 12), (1, 5), (4, 8), (0, 3)]):
        weight[i, first:last] = 1
        tokens[i, last + 1 :] = filler
    weight, indices = weight / weight.mean(), torch.arange(4)
    return TokenBatch("plain", 3, *(x[rows] for x in (indices, tokens, weight, weight, indices)))


@pytest.mark.parametrize("name", PADDED)
def test_what_padding_holds_changes_no_loss(name):
    """Nor does how a batch is divided: value and gradients, to the student and to projectors."""
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4}
    teacher = causal_lm({**LLAMA, **heads, "hidden_size": 32, "num_hidden_layers": 4}, 1).requires_grad_(False)
    student = causal_lm({**LLAMA, **(heads if name == "minilm" else {})}, 2)
    loss = LOSSES.build(Plugin(name, OPTIONS.get(name, {})))
    distiller = Distiller(LanguageModeling(), student, [loss], base_weight=0.0)
    distiller.build([padded(0)], teacher)

    def gradient(*batches):
        distiller.zero_grad()
        values = [distiller(batch, teacher)[0] / len(batches) for batch in batches]
        for value in values:
            value.backward()
        parts = [p.grad.flatten() for p in distiller.parameters() if p.grad is not None]
        return torch.stack(values).sum().detach(), torch.cat(parts)

    value, want = gradient(padded(0))
    assert bool(value > 0)
    for batches in ([padded(7)], [padded(0, slice(0, 2)), padded(0, slice(2, 4))]):
        again, found = gradient(*batches)
        torch.testing.assert_close(again, value, rtol=1e-5, atol=0)
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5 * float(want.abs().max()))


def test_a_loss_that_fits_all_of_a_prediction_refuses_tokens():
    prediction = Forward(torch.zeros(4, 12, 5))
    with pytest.raises(UserError, match=r"losses\.lift: .* wanted the loss output or kd"):
        LOSSES.build(Plugin("lift")).term(prediction, prediction, padded(0))
