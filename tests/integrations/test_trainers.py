"""SHD in a Trainer of transformers: the gradients are those of our own Distiller on the same batch."""

import pytest
import torch
from language import GPT2, LLAMA, causal_lm
from runs import torchrun

from dit_shd import SHD
from dit_shd.core.errors import UserError
from dit_shd.data.packing import PADDING
from dit_shd.distillation.distiller import Distiller
from dit_shd.integrations.trainers import add_shd, learned_rows
from dit_shd.tasks.language_modeling import LanguageModeling, TokenBatch

transformers = pytest.importorskip("transformers")
SAMPLES = 8


def samples(seed=0, length=12):
    """Tokens [8,n+1], and which of them are learned: prompts and padding of many lengths are not."""
    r = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, 256, (SAMPLES, length + 1), generator=r)
    at = torch.arange(length + 1)
    begin = torch.randint(1, 5, (SAMPLES, 1), generator=r)
    end = torch.randint(7, length + 2, (SAMPLES, 1), generator=r)
    return tokens, (at >= begin) & (at < end), at < end


def batch_of(tokens, learned, real):
    """The same as our own task has it."""
    documents = torch.where(real, 0, PADDING)
    targets = learned[:, 1:] & (documents[:, 1:] != PADDING)
    rows = learned[:, :-1]
    weights = (mask.float() / mask.float().mean() for mask in (targets, rows))
    indices = torch.arange(len(tokens))
    return TokenBatch("plain", 0, indices, tokens, *weights, indices, None)


def models(student=GPT2, teacher=LLAMA):
    few = {"n_head": 2} if student is GPT2 else {"num_attention_heads": 2, "num_key_value_heads": 1}
    return causal_lm({**student, **few}, seed=1).network, causal_lm(teacher).network


def trainer_of(student, data, folder, cls=None, **options):
    """One step of gradient descent at rate 1, so that weights tell the gradient."""
    tokens, learned, real = data
    rows = [
        {"input_ids": t, "attention_mask": m.long(), "labels": torch.where(kept, t, -100)}
        for t, kept, m in zip(tokens, learned, real)
    ]
    options = {"per_device_train_batch_size": SAMPLES, "max_steps": 1, **options}
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), use_cpu=True, optim="sgd", learning_rate=1.0, lr_scheduler_type="constant",
        max_grad_norm=0.0, report_to=[], save_strategy="no", logging_steps=1, remove_unused_columns=False,
        disable_tqdm=True, **options,
    )  # fmt: skip
    return (cls or transformers.Trainer)(model=student, args=arguments, train_dataset=rows)


def gradient_of(trainer):
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    return {name: before[name] - p.detach() for name, p in trainer.model.named_parameters()}


def distillers(student, teacher, data, weight):
    distiller = Distiller(LanguageModeling(), student, [SHD(weight=weight)])
    loss, logs = distiller(batch_of(*data), teacher)
    return dict(zip(dict(student.named_parameters()), torch.autograd.grad(loss, list(student.parameters())))), logs


@pytest.mark.parametrize("micro", [8, 4, 2])
@pytest.mark.parametrize("student", [GPT2, LLAMA], ids=["gpt2", "llama"])
def test_gradients_are_the_distillers_however_the_batch_is_divided(tmp_path, micro, student):
    """Samples have other numbers of learned tokens, so a mean of means would be wrong."""
    data = samples()
    small, teacher = models(student)
    want, logs = distillers(small, teacher, data, weight=2.0)
    trainer = trainer_of(
        small, data, tmp_path, per_device_train_batch_size=micro, gradient_accumulation_steps=SAMPLES // micro
    )
    add_shd(trainer, SHD(weight=2.0), teacher)
    found = gradient_of(trainer)
    for name, gradient in want.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=2e-6)
    (row,) = [row for row in trainer.state.log_history if "loss" in row]
    if micro == SAMPLES:
        assert row["shd"] == pytest.approx(float(logs["shd"]), rel=1e-5)


def test_blocks_may_be_computed_again(tmp_path):
    data = samples()
    found = []
    for again in (False, True):
        student, teacher = models()
        trainer = trainer_of(
            student, data, tmp_path, gradient_checkpointing=again,
            gradient_checkpointing_kwargs={"use_reentrant": False},
        )  # fmt: skip
        add_shd(trainer, SHD(weight=2.0), teacher)
        found.append(gradient_of(trainer))
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient)


class WithTeacher(transformers.Trainer):
    """As TRL's distillation trainers: the teacher runs in compute_loss, and labels may be made while training."""

    teacher_model = None
    remade = False

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        with torch.no_grad():
            self.teacher_model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    def training_step(self, model, inputs, num_items_in_batch=None):
        if self.remade:
            inputs["labels"][:, :5] = -100
        return super().training_step(model, inputs, num_items_in_batch)


def test_a_trainers_own_teacher_runs_once(tmp_path):
    data = samples()
    student, teacher = models()
    want, _ = distillers(student, teacher, data, weight=1.0)
    trainer = trainer_of(student, data, tmp_path, WithTeacher)
    with pytest.raises(UserError, match="WithTeacher has no teacher_model; wanted add_shd"):
        add_shd(trainer)
    trainer.teacher_model = teacher
    runs = []
    teacher.register_forward_hook(lambda *_: runs.append(1))
    add_shd(trainer)
    found = gradient_of(trainer)
    assert len(runs) == 1
    for name, gradient in want.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=2e-6)


def test_where_texts_are_made_while_training_micro_batches_count_the_same(tmp_path):
    data = samples()
    student, teacher = models()
    tokens, learned, real = data
    remade = learned.clone()
    remade[:, :5] = False
    halves = [(tokens[i : i + 4], remade[i : i + 4], real[i : i + 4]) for i in (0, 4)]
    shares = []
    for half in halves:
        distiller = Distiller(LanguageModeling(), student, [SHD(weight=1.0)])
        terms, _ = distiller.terms(batch_of(*half), teacher)
        shares.append(torch.autograd.grad(terms["shd"], [student.transformer.h[0].attn.c_attn.weight])[0])
    options = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "seed": 3}
    gradients = []
    for weight in (0.0, 1.0):
        again, _ = models()
        trainer = trainer_of(again, data, tmp_path, WithTeacher, **options)
        trainer._get_train_sampler = lambda *_: range(SAMPLES)  # in order
        trainer.teacher_model, trainer.remade = teacher, True
        add_shd(trainer, SHD(weight=weight))
        gradients.append(gradient_of(trainer)["transformer.h.0.attn.c_attn.weight"])
    torch.testing.assert_close(gradients[1] - gradients[0], sum(shares) / 2, rtol=1e-2, atol=1e-5)


def test_it_can_be_taken_back_and_is_no_part_of_an_evaluation(tmp_path):
    data = samples()
    student, teacher = models()
    trainer = trainer_of(student, data, tmp_path)
    plain = trainer.evaluate(trainer.train_dataset)["eval_loss"]
    term = add_shd(trainer, SHD(weight=5.0), teacher)
    assert trainer.evaluate(trainer.train_dataset)["eval_loss"] == plain
    term.remove()
    assert "compute_loss" not in vars(trainer)
    trainer.train()
    assert "shd" not in trainer.state.log_history[0]


def test_rows_of_trls_batches():
    inputs = {
        "prompt_ids": torch.ones(2, 3, dtype=torch.long),
        "completion_ids": torch.ones(2, 4, dtype=torch.long),
        "completion_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
    }
    want = torch.tensor([[0, 0, 0, 1, 1, 1, 0], [0, 0, 0, 1, 1, 0, 0]]).bool()
    assert torch.equal(learned_rows(inputs), want)
    with pytest.raises(UserError, match=r"wanted labels in the trainer's batch, found input_ids"):
        learned_rows({"input_ids": torch.ones(1, 2)})


@pytest.mark.slow
def test_two_processes_are_one(root, tmp_path):
    """Each has half of the batch; weights after a step are those of one process."""
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys; sys.path[:0] = ['{root}/tests', '{root}/tests/integrations']\n"
        "import torch, test_trainers as t\n"
        "from dit_shd import SHD\n"
        "from dit_shd.integrations.trainers import add_shd\n"
        "data = t.samples(); student, teacher = t.models()\n"
        "want, _ = t.distillers(student, teacher, data, 2.0)\n"
        f"trainer = t.trainer_of(student, data, '{tmp_path}/out', per_device_train_batch_size=2,"
        " gradient_accumulation_steps=2)\n"
        "assert trainer.accelerator.num_processes == 2\n"
        "add_shd(trainer, SHD(weight=2.0), teacher)\n"
        "found = t.gradient_of(trainer)\n"
        "for name, gradient in want.items():\n"
        "    torch.testing.assert_close(found[name.removeprefix('module.')], gradient, rtol=1e-3, atol=2e-6)\n"
        "print('same')\n"
    )
    assert torchrun(script, 2, root).count("same") == 2
