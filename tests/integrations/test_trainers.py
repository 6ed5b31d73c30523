"""SHD in a Trainer of transformers: the gradients are those of our own Distiller on the same batch."""

import inspect
from importlib.util import find_spec

import oracle
import pytest
import torch
import torch.nn.functional as F
from language import GPT2, LLAMA
from runs import torchrun
from two_process_jobs import said

from dit_shd import SHD, capture
from dit_shd.core.errors import UserError
from dit_shd.distillation.distiller import Distiller
from dit_shd.integrations.trainers import add_shd
from dit_shd.tasks.language_modeling import LanguageModeling, TokenBatch

transformers = pytest.importorskip("transformers")

from small_trainers import SAMPLES, batch_of, distillers, gradient_of, models, samples, trainer_of  # noqa: E402


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
    assert row["shd"] == pytest.approx(float(logs["shd"]), rel=1e-5)
    assert row["loss"] - 2.0 * row["shd"] == pytest.approx(float(logs["cross_entropy"]), rel=1e-4)


def test_the_log_has_the_mean_over_steps(tmp_path):
    """As the trainer's loss is one: neither of micro batches nor of rows, of which steps have other numbers."""
    data, (student, teacher) = samples(), models()
    options = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "max_steps": 4}
    trainer = trainer_of(student, data, tmp_path, **options)
    trainer.args.logging_steps, trainer.args.learning_rate = 4, 0.0
    trainer._get_train_sampler = lambda *_: range(SAMPLES)  # in order
    add_shd(trainer, SHD(weight=2.0), teacher)
    trainer.train()
    steps = [distillers(student, teacher, [x[i : i + 2] for x in data], weight=2.0)[1] for i in range(0, SAMPLES, 2)]
    (row,) = [row for row in trainer.state.log_history if "loss" in row]
    for name, value in (("shd", row["shd"]), ("cross_entropy", row["loss"] - 2.0 * row["shd"])):
        assert value == pytest.approx(sum(float(step[name]) for step in steps) / len(steps), rel=1e-4)


def test_another_training_begins_its_log_anew(tmp_path):
    """After one that was not logged, and after one that was interrupted between the micro batches of a step."""
    data, (student, teacher) = samples(), models()
    trainer = trainer_of(student, data, tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    trainer.args.learning_rate, trainer.args.logging_steps = 0.0, 500
    loss = SHD(weight=2.0)
    add_shd(trainer, loss, teacher)
    calls, compute_loss = [], trainer.compute_loss

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return compute_loss(*args, **kwargs)

    trainer.compute_loss = interrupted
    trainer.train()
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.args.logging_steps = 1
    trainer.train()
    (row,) = [row for row in trainer.state.log_history if "loss" in row]
    _, logs = distillers(student, teacher, data, weight=2.0)
    assert row["shd"] == pytest.approx(float(logs["shd"]), rel=1e-4)


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


def test_documents_are_apart_in_both_models_or_in_none(tmp_path):
    student, teacher = models(LLAMA)
    trainer = packed_trainer(student, samples(), tmp_path)
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


def test_precision_is_the_trainers(tmp_path):
    """In bf16 the gradient is the same as far as bf16 has digits."""
    data, found = samples(), []
    for bf16 in (False, True):
        student, teacher = models()
        trainer = trainer_of(student, data, tmp_path, bf16=bf16)
        add_shd(trainer, SHD(weight=20.0), teacher)
        found.append(torch.cat([g.flatten() for g in gradient_of(trainer).values()]))
    assert not torch.equal(*found)
    assert torch.nn.functional.cosine_similarity(*found, dim=0) > 0.999


def test_only_adapters_learn(tmp_path):
    peft = pytest.importorskip("peft")
    data = samples()
    student, teacher = models()
    student = peft.get_peft_model(student, peft.LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True))
    want, _ = distillers(student.get_base_model(), teacher, data, weight=2.0)
    trainer = trainer_of(student, data, tmp_path)
    add_shd(trainer, SHD(weight=2.0), teacher)
    found = {name.removeprefix("base_model.model."): g for name, g in gradient_of(trainer).items()}
    assert set(want) <= set(found) and all(
        name.endswith(("lora_A.default.weight", "lora_B.default.weight")) for name in want
    )
    for name, gradient in want.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=2e-6)


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


def test_a_teacher_has_the_segments_of_its_texts(tmp_path):
    """Of masked language models, whose maps depend on them."""
    sizes = {"vocab_size": 256, "num_hidden_layers": 1, "intermediate_size": 16, "max_position_embeddings": 16}
    student, teacher = (
        transformers.BertForMaskedLM(transformers.BertConfig(hidden_size=16, num_attention_heads=h, **sizes))
        for h in (2, 4)
    )
    trainer = trainer_of(student, samples(), tmp_path)
    given = (torch.arange(13) > 4).long()
    trainer.train_dataset = [{**row, "token_type_ids": given} for row in trainer.train_dataset]
    seen = []
    teacher.bert.register_forward_pre_hook(lambda _m, _a, k: seen.append(k["token_type_ids"]), with_kwargs=True)
    add_shd(trainer, SHD(), teacher)
    trainer.train()
    assert torch.equal(seen[0], given.expand(SAMPLES, 13))


def test_it_can_be_taken_back_and_is_no_part_of_an_evaluation(tmp_path):
    data = samples()
    student, teacher = models()
    trainer = trainer_of(student, data, tmp_path)
    plain = trainer.evaluate(trainer.train_dataset)["eval_loss"]
    term = add_shd(trainer, SHD(weight=5.0), teacher)
    assert trainer.evaluate(trainer.train_dataset)["eval_loss"] == plain
    with pytest.raises(UserError, match=r"has SHD already, which would count twice.*term\.remove\(\)"):
        add_shd(trainer, SHD(weight=5.0), teacher)
    term.remove()
    assert "compute_loss" not in vars(trainer)
    add_shd(trainer, SHD(weight=5.0), teacher).remove()
    trainer.train()
    assert "shd" not in trainer.state.log_history[0]


@pytest.mark.two_processes("trainers")
def test_two_processes_are_one(by_two):
    """Each has half of the batch, in two micro batches: the gradient is that of our Distiller on all of it."""
    (want, shd), lines = torch.load(by_two / "want.pt", weights_only=True), said(by_two)
    assert [line[:2] for line in lines] == [[2, 2]] * 2
    assert [line[2] for line in lines] == pytest.approx([shd] * 2, rel=1e-5)
    for found in (torch.load(by_two / f"gradient_{rank}.pt", weights_only=True) for rank in range(2)):
        assert found.keys() == want.keys()
        for name, gradient in want.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=2e-6)


@pytest.mark.two_processes("sharded_trainers")
def test_slices_of_fsdp_are_one(by_two):
    """Student and teacher lie in slices over two processes: the gradient is that of our Distiller on whole models."""
    want, found = (torch.load(by_two / name, weights_only=True) for name in ("want.pt", "gradient.pt"))
    assert all(kinds == ["DTensor"] and shd[0] > 0.1 for kinds, shd in said(by_two))
    assert found.keys() == want.keys()
    for name, gradient in want.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=2e-6)


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.skipif(find_spec("deepspeed") is None, reason="DeepSpeed is not installed")
def test_deepspeed_is_one(stage, root, tmp_path):
    """Two processes under ZeRO: the gradient is that of our Distiller on the whole model."""
    torchrun(root / "tests" / "deepspeed_step.py", 2, root, tmp_path, stage, seconds=600)
    want, found = (torch.load(tmp_path / name, weights_only=True) for name in ("want.pt", "gradient.pt"))
    assert found.keys() == want.keys()
    for name, gradient in want.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=2e-6)


def test_methods_of_the_users_stay_when_the_term_goes(tmp_path):
    """A compute_loss set before comes back, one wrapped around since stays, and SHD counts neither twice nor on."""
    data = samples()
    student, teacher = models()
    alone = gradient_of(trainer_of(models()[0], data, tmp_path))
    trainer = trainer_of(student, data, tmp_path)
    plain = trainer.compute_loss
    before = trainer.compute_loss = lambda *args, **kwargs: plain(*args, **kwargs)
    term = add_shd(trainer, SHD(weight=5.0), teacher)
    term.remove()
    assert trainer.compute_loss is before
    term = add_shd(trainer, SHD(weight=5.0), teacher)
    inner = trainer.compute_loss
    after = trainer.compute_loss = lambda *args, **kwargs: inner(*args, **kwargs)
    with pytest.raises(UserError, match="has SHD already"):
        add_shd(trainer, SHD(weight=5.0), teacher)
    term.remove()
    assert trainer.compute_loss is after
    for name, gradient in gradient_of(trainer).items():
        torch.testing.assert_close(gradient, alone[name])
