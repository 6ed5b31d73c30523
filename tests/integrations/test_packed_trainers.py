"""SHD in a Trainer whose texts are packed or padded: documents apart, and the rows that take part."""

import oracle
import pytest
import torch
import torch.nn.functional as F
from language import GPT2, LLAMA

from dit_shd import SHD, capture
from dit_shd.core.errors import UserError
from dit_shd.distillation.distiller import Distiller
from dit_shd.integrations.trainers import add_shd
from dit_shd.tasks.language_modeling import LanguageModeling, TokenBatch

transformers = pytest.importorskip("transformers")

from small_trainers import SAMPLES, gradient_of, models, samples, trainer_of  # noqa: E402


def packed_trainer(student, data, folder, cls=None):
    """Of one batch, whose documents are a single row."""
    trainer = trainer_of(student, data, folder, cls)
    trainer._get_train_sampler = lambda *_: range(SAMPLES)  # in order
    trainer.data_collator = transformers.DataCollatorWithFlattening()
    trainer.train_dataset = [
        {key: row[key][: int(row["attention_mask"].sum())].tolist() for key in ("input_ids", "labels")}
        for row in trainer.train_dataset
    ]
    student.config.use_cache = False  # else transformers does not keep packed documents apart
    return trainer


class Cached(transformers.Trainer):
    """Whose own teacher lets packed documents attend to each other."""

    teacher_model = None

    def compute_loss(self, model, inputs, *args, **kwargs):
        with torch.no_grad():
            self.teacher_model(input_ids=inputs["input_ids"], position_ids=inputs["position_ids"], use_cache=True)
        return super().compute_loss(model, inputs, *args, **kwargs)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_documents_are_apart_in_both_models_or_in_none(tmp_path, smoothing):
    """Also where the trainer takes the labels out of the batch to smooth them."""
    student, teacher = models(LLAMA)
    trainer = packed_trainer(student, samples(), tmp_path)
    trainer.label_smoother = transformers.trainer_pt_utils.LabelSmoother(smoothing) if smoothing else None
    add_shd(trainer, SHD(), teacher)
    student.config.use_cache = True
    with pytest.raises(
        UserError, match=r"layers\.0.* of the student packed .* in the teacher .* use_cache=False for both"
    ):
        trainer.train()
    trainer = packed_trainer(student, samples(), tmp_path, Cached)
    trainer.teacher_model = teacher
    add_shd(trainer)
    with pytest.raises(UserError, match=r"layers\.0.* of the teacher packed documents attend .* in the student they"):
        trainer.train()
    student.config.use_cache = True
    trainer.train()


def packed_and_padded(folder, loss, teacher, student=GPT2):
    """The gradients of one batch of documents, packed into a row and padded, and those of our Distiller for the row."""
    tokens, learned, real = samples()
    learned[:, 1] = False  # no first token is learned, which the losses of some models would count
    found = []
    for packs in (True, False):
        small = models(student)[0]
        made = packed_trainer if packs else trainer_of
        trainer = made(small, (tokens, learned, real), folder)
        add_shd(trainer, loss, teacher)
        found.append(gradient_of(trainer))
    ends = F.pad(~real[:, 1:], (0, 1), value=True)
    row = [torch.cat([x[i][real[i]] for i in range(SAMPLES)])[None] for x in (tokens, learned, ends)]
    places = torch.cat([torch.arange(int(one.sum())) for one in real])[None]
    row = [F.pad(x, (0, 1)) for x in row]  # the next token of the last one
    within = ~row[2][:, :-1]
    weights = (x.float() / x.float().mean() for x in (row[1][:, 1:] & within, row[1][:, :-1] & within))
    batch = TokenBatch("plain", 0, torch.arange(1), row[0], *weights, torch.arange(1), places)
    small = models(student)[0]
    total, _ = Distiller(LanguageModeling(), small, [loss])(batch, teacher)
    found.append(dict(zip(found[0], torch.autograd.grad(total, list(small.parameters())))))
    return found


@pytest.mark.parametrize("student", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_packed_documents_are_the_distillers(tmp_path, student):
    """With one alpha for the row; an even merge, which has none, is that of the padded batch, too."""
    teacher = models()[1]
    packed, padded, distilled = packed_and_padded(tmp_path, SHD(weight=2.0), teacher, student)
    assert any(not torch.allclose(padded[name], gradient, rtol=1e-3, atol=2e-6) for name, gradient in packed.items())
    for name, gradient in distilled.items():
        torch.testing.assert_close(packed[name], gradient, rtol=1e-3, atol=2e-6)
    packed, padded, distilled = packed_and_padded(tmp_path, SHD(weight=2.0, method="constant"), teacher, student)
    for name, gradient in packed.items():
        torch.testing.assert_close(padded[name], gradient, rtol=1e-3, atol=2e-6)
        torch.testing.assert_close(distilled[name], gradient, rtol=1e-3, atol=2e-6)


@pytest.mark.parametrize("prompt_rows", [False, True])
def test_the_rows_that_take_part_are_an_option(tmp_path, prompt_rows):
    """Gradients by whole maps: of the tokens that are learned alone, or of prompts as well; never of padding."""
    data = samples()
    tokens, learned, real = data
    student, teacher = models()
    with capture(teacher) as t, capture(student) as s:
        for model in (teacher, student):
            model(tokens, attention_mask=real.long())
    rows = (real if prompt_rows else learned & real)[:, :-1] & real[:, 1:]
    assert 0 < int(rows.sum()) < rows.numel()
    want = torch.zeros(())
    for one, other in zip(t.values(), s.values()):
        a, b = one.map().detach()[:, :, :-1], other.map()[:, :, :-1]
        x = oracle.head_outputs(one.value[:, one.key_heads(range(4))], one.out).detach()
        w, _ = oracle.merge_progressively(rows[:, None, :, None] * a, x, [[0, 1], [2, 3]])
        each = [oracle.divergence(a[:, :, i : i + 1], b[:, :, i : i + 1], w) for i in range(a.shape[2])]
        want = want + (torch.stack(each, 1) * rows).sum() / rows.sum()
    wanted = dict(
        zip(dict(student.named_parameters()), torch.autograd.grad(want, list(student.parameters()), allow_unused=True))
    )
    gradients = []
    for weight in (0.0, 3.0):
        again, _ = models()
        trainer = trainer_of(again, data, tmp_path)
        add_shd(trainer, SHD(weight=weight), teacher, prompt_rows=prompt_rows)
        gradients.append(gradient_of(trainer))
    for name, gradient in wanted.items():
        difference = gradients[1][name] - gradients[0][name]
        torch.testing.assert_close(
            difference, 3 * (0 if gradient is None else gradient) + 0 * difference, rtol=1e-3, atol=3e-6
        )
