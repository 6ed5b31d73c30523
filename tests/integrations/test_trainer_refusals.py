"""What `add_shd` refuses before or while a trainer runs, each in one line."""

import os
from unittest.mock import patch

import pytest
import torch
from language import LLAMA, causal_lm

from dit_shd import SHD
from dit_shd.core.errors import UserError
from dit_shd.integrations.trainers import add_shd
from dit_shd.models.compilation import compile_blocks

transformers = pytest.importorskip("transformers")

from small_trainers import gradient_of, models, samples, trainer_of  # noqa: E402


def test_what_cannot_be_read_is_refused_before_training(tmp_path):
    data = samples()
    student, teacher = models()
    trainer = trainer_of(student, data, tmp_path)
    with pytest.raises(UserError, match=r"a matched plan has to be calibrated first: loss\.calibrate"):
        add_shd(trainer, SHD(plan="matched"), teacher)
    next(teacher.parameters()).ds_tensor = None
    with pytest.raises(UserError, match="partitioned by DeepSpeed's ZeRO stage 3"):
        add_shd(trainer, SHD(), teacher)


def test_models_compiled_whole_are_refused_and_compiled_blocks_are_captured(tmp_path):
    data, found = samples(), []
    student, teacher = models()
    with patch.dict(os.environ):  # transformers tells accelerate by variables, for every later run of the process
        compiled = trainer_of(student, data, tmp_path, torch_compile=True, torch_compile_backend="eager")
    with pytest.raises(UserError, match=r"GPT2LMHeadModel is compiled whole.*compile_blocks"):
        add_shd(compiled, SHD(), teacher)
    trainer = trainer_of(student, data, tmp_path)
    with pytest.raises(UserError, match="OptimizedModule is compiled whole"):
        add_shd(trainer, SHD(), torch.compile(teacher, backend="eager"))
    add_shd(trainer, SHD(), teacher)
    student.compile(backend="eager")
    with pytest.raises(UserError, match="GPT2LMHeadModel is compiled whole"):
        trainer.train()
    for compiled in (False, True):
        student, teacher = models()
        if compiled:
            compile_blocks(student, "eager")
        trainer = trainer_of(student, data, tmp_path)
        add_shd(trainer, SHD(weight=2.0), teacher)
        found.append(gradient_of(trainer))
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient)


@pytest.mark.parametrize(("window", "words"), [(4, "the first batch"), (10, "the steps since the last log")])
def test_keys_that_the_student_alone_leaves_out_are_refused(tmp_path, window, words):
    """At once, or where longer texts come later; transformers had filtered each infinite loss and logged 0."""
    student = causal_lm({**LLAMA, "model_type": "mistral", "sliding_window": window}).network
    tokens, learned, real = samples()
    real[:4] &= torch.arange(13) < 9  # the first texts are short, the others long
    learned[4:], real[4:] = True, True
    trainer = trainer_of(student, (tokens, learned, real), tmp_path, per_device_train_batch_size=4, max_steps=2)
    trainer._get_train_sampler = lambda *_: range(8)  # in order
    add_shd(trainer, SHD(), models()[1])
    with pytest.raises(UserError, match=f"SHD: {words}: infinite, .* the student leaves out; .* sliding windows"):
        trainer.train()


def test_a_second_forward_in_compute_loss_is_refused(tmp_path):
    """SHD had learned from it: nothing of one without a graph, and of the wrong samples of one on others."""
    student, teacher = models()
    trainer = trainer_of(student, samples(), tmp_path)
    loss_of = trainer.compute_loss

    def monitored(model, inputs, **options):
        loss = loss_of(model, inputs, **options)
        with torch.no_grad():
            model(**inputs)
        return loss

    trainer.compute_loss = monitored
    add_shd(trainer, SHD(), teacher)
    with pytest.raises(UserError, match=r"the student runs 2 times in compute_loss \(a metric, a monitor\?\)"):
        trainer.train()


def test_a_teacher_that_was_not_called_is_named(tmp_path):
    student, teacher = models()
    trainer = trainer_of(student, samples(), tmp_path)
    add_shd(trainer, SHD(), teacher)
    teacher.forward = lambda **_: None
    with pytest.raises(UserError, match="the teacher's captures are empty"):
        trainer.train()


def test_an_encoder_decoder_is_refused(tmp_path):
    """Its encoder's attention would be paired with the labels' rows wherever the lengths happen to agree."""
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    config = transformers.BartConfig(vocab_size=64, d_model=16, max_position_embeddings=16, **sizes)
    student, teacher = transformers.BartForConditionalGeneration(config), models()[1]
    with pytest.raises(UserError, match="without an encoder, found BartForConditionalGeneration"):
        add_shd(trainer_of(student, samples(), tmp_path), SHD(), teacher)
    with pytest.raises(UserError, match="without an encoder, found BartForConditionalGeneration"):
        add_shd(trainer_of(teacher, samples(), tmp_path), SHD(), student)


def test_a_teacher_with_weights_that_the_student_learns_is_refused(tmp_path):
    """Freezing it would freeze them in the student; those that the student does not learn may be shared."""
    student, teacher = models(LLAMA)
    teacher.model.embed_tokens = student.model.embed_tokens
    trainer = trainer_of(student, samples(), tmp_path)
    for shared in (teacher, trainer.model):
        with pytest.raises(UserError, match="shares weights with the student"):
            add_shd(trainer, SHD(), shared)
    assert all(p.requires_grad for p in student.parameters())
    student.model.embed_tokens.requires_grad_(False)
    add_shd(trainer, SHD(), teacher)
