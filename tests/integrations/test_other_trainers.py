"""SHD in trainers of a kind of their own: with a teacher, with texts that are made while training, TRL's."""

import inspect

import pytest
import torch

from dit_shd import SHD
from dit_shd.core.errors import UserError
from dit_shd.distillation.distiller import Distiller
from dit_shd.integrations.trainers import add_shd
from dit_shd.tasks.language_modeling import LanguageModeling

transformers = pytest.importorskip("transformers")

from small_trainers import SAMPLES, batch_of, distillers, gradient_of, models, samples, trainer_of  # noqa: E402


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


class Generating(transformers.Trainer):
    """As TRL's DistillationTrainer: a step's texts are generated at once and their tokens counted."""

    loss_is_scaled_for_ga = True
    count = 0

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        rows = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1)
        tokens = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1)
        return 0.0 * model(input_ids=tokens, attention_mask=rows).logits.sum()

    def _prepare_inputs(self, inputs):
        given, mask = inputs["input_ids"], inputs["attention_mask"]
        prompt, completion = {"prompt_ids": given[:, :5]}, {"completion_ids": given[:, 5:]}
        masks = {"prompt_mask": mask[:, :5], "completion_mask": mask[:, 5:]}
        return {**prompt, **completion, **masks, "num_items_in_batch": torch.tensor(float(self.count))}


def test_generated_texts_are_counted_as_the_trainer_counts_them(tmp_path):
    if "loss_is_scaled_for_ga" not in inspect.getsource(transformers.Trainer):
        pytest.skip("this release's Trainer leaves scaled losses to nobody")
    tokens, learned, real = samples()
    found = []
    for micro in (8, 2):
        student, teacher = models()
        options = {"per_device_train_batch_size": micro, "gradient_accumulation_steps": SAMPLES // micro}
        trainer = trainer_of(student, (tokens, learned, real), tmp_path, Generating, **options)
        for row in trainer.train_dataset:
            del row["labels"]
        trainer.count = int(real[:, 5:].sum())
        add_shd(trainer, SHD(weight=2.0), teacher)
        found.append(gradient_of(trainer))
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-3, atol=2e-6)
    assert found[0]["transformer.h.0.attn.c_attn.weight"].norm() > 0


def test_trls_sft_trainer_has_the_distillers_gradients(tmp_path):
    trl = pytest.importorskip("trl")
    data = samples()
    tokens, learned, real = data
    student, teacher = models()
    want, _ = distillers(student, teacher, data, weight=2.0)
    rows = [
        {"input_ids": t.tolist(), "attention_mask": m.long().tolist(), "labels": torch.where(kept, t, -100).tolist()}
        for t, kept, m in zip(tokens, learned, real)
    ]
    arguments = trl.SFTConfig(
        output_dir=str(tmp_path), use_cpu=True, optim="sgd", learning_rate=1.0, lr_scheduler_type="constant",
        max_grad_norm=0.0, report_to=[], save_strategy="no", logging_steps=1, disable_tqdm=True, max_steps=1,
        per_device_train_batch_size=4, gradient_accumulation_steps=2, bf16=False, gradient_checkpointing=False,
        dataset_kwargs={"skip_prepare_dataset": True}, remove_unused_columns=False, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = trl.SFTTrainer(
        model=student, args=arguments, train_dataset=datasets_of(rows), processing_class=tokenizer_in(tmp_path),
        data_collator=transformers.default_data_collator,
    )  # fmt: skip
    add_shd(trainer, SHD(weight=2.0), teacher)
    found = gradient_of(trainer)
    for name, gradient in want.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=2e-6)


def datasets_of(rows):
    return pytest.importorskip("datasets").Dataset.from_list(rows)


def tokenizer_in(folder):
    from dit_shd.data.tokenizer import ByteTokenizer

    ByteTokenizer().save_pretrained(folder / "tokenizer")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "tokenizer")
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
