"""SHD in a Trainer of transformers: the gradients are those of our own Distiller on the same batch."""

from importlib.util import find_spec

import pytest
import torch
from language import GPT2, LLAMA
from runs import torchrun
from two_process_jobs import said

from dit_shd import SHD
from dit_shd.core.errors import UserError
from dit_shd.integrations.trainers import add_shd

transformers = pytest.importorskip("transformers")

from small_trainers import SAMPLES, distillers, gradient_of, models, samples, trainer_of  # noqa: E402


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
