"""Models of language and the text that they are given: which fit, which are refused, and what is exported."""

import json

import pytest
import torch
from language import GPT2, LLAMA, MISTRAL, OPT, causal_lm, lines
from runs import run
from text_tasks import batch_of, task

from dit_shd.core.errors import UserError
from dit_shd.core.rng import Draws
from dit_shd.distillation.distiller import Distiller
from dit_shd.distillation.losses.shd import SHD
from dit_shd.models.loading import load


def test_a_model_with_another_tokenizer_is_refused(tmp_path):
    path, options = lines(tmp_path), {"tokenizer": str(tmp_path / "bpe.json"), "vocabulary": 300}
    made = task(path, **options)
    model = causal_lm({**GPT2, "vocab_size": 300})
    made.describe(model)
    model.save_pretrained(tmp_path / "student")
    read = load(tmp_path / "student")
    made.check("student", read)
    with pytest.raises(
        UserError, match=r"student: has a tokenizer of its own \(token \d+ is .* wanted data\.tokenizer="
    ):
        task(path).check("student", read)


def test_an_exported_student_ends_where_its_text_did(tmp_path):
    """The library's config named tokens 1 and 2 of another vocabulary, which are letters here."""
    made = task(lines(tmp_path))
    for config in (GPT2, LLAMA):
        model = causal_lm(config)
        made.describe(model)
        model.save_pretrained(tmp_path / config["model_type"])
        for name in ("config.json", "generation_config.json"):
            found = json.loads((tmp_path / config["model_type"] / name).read_text())
            assert (found["eos_token_id"], found["bos_token_id"]) == (256, 256)
    chat = causal_lm(GPT2)
    chat.network.generation_config.eos_token_id = [7, 256]
    made.describe(chat)
    assert chat.network.generation_config.eos_token_id == [7, 256]
    by_chance = causal_lm({**LLAMA, "eos_token_id": 256, "bos_token_id": 1})
    made.describe(by_chance)
    assert by_chance.network.config.bos_token_id == by_chance.network.generation_config.bos_token_id == 256


BERT = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
BERT |= {"intermediate_size": 24, "vocab_size": 257}


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        ({**GPT2, "vocab_size": 200}, {}, r"^student: knows 200 tokens, the data's tokenizer has 257$"),
        (GPT2, {"length": 40}, r"^student: takes 32 tokens, data\.length is 40$"),
        (BERT, {}, r"^student: BertLMHeadModel attends to tokens to come; wanted a causal language model$"),
        (OPT, {}, r"^student: in OPTForCausalLM packed documents attend to each other; task\.separate=false"),
    ],
)
def test_models_that_do_not_fit(tmp_path, config, options, message):
    made = task(lines(tmp_path), **options)
    with pytest.raises(UserError, match=message):
        made.check("student", causal_lm(config))


def test_a_model_that_fits_is_left_as_it_was(tmp_path):
    model = causal_lm(GPT2).train()
    task(lines(tmp_path)).check("student", model)
    assert model.training
    task(lines(tmp_path), separate=False).check("student", causal_lm(OPT))
    with pytest.raises(UserError, match="wanted a causal language model"):
        task(lines(tmp_path)).check("teacher", torch.nn.Linear(2, 2))


def test_a_teacher_that_knows_nothing_of_the_text_is_found_out(tmp_path):
    made = task(lines(tmp_path))
    (finding,) = made.check_teacher(causal_lm(GPT2), 0, torch.device("cpu"), measure=True)
    assert "no better than tokens' frequencies" in finding.fault
    assert not list(made.check_teacher(causal_lm(GPT2), 0, torch.device("cpu"), measure=False))
    good = causal_lm(GPT2, std=0.02).train()
    optimizer = torch.optim.Adam(good.parameters(), 1e-2)
    for step in range(40):
        batch = batch_of(made, step)
        made.losses(made.predict(good, batch), batch)["cross_entropy"].mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    (finding,) = made.check_teacher(good.eval(), 0, torch.device("cpu"), measure=True)
    assert finding.fault is None and finding.message.startswith("teacher: ")


def test_a_text_has_no_block_of_an_image(tmp_path):
    """It had been the whole map, whatever was asked for."""
    made = task(lines(tmp_path))
    models = [causal_lm(LLAMA) for _ in range(2)]
    (batch,) = made.draw(Draws(0, 0, range(2), 2))
    with pytest.raises(UserError, match=r"losses: block: wanted joint, found image; .*self_attn reads text alone"):
        Distiller(made, models[0], [SHD(block="image")]).terms(batch, models[1])


def test_a_student_whose_window_hides_what_its_teacher_sees_is_told_so(tmp_path):
    """Its divergence is infinite, and neither a learning rate nor a precision has to do with it."""
    data = {"name": "text", "path": lines(tmp_path), "length": 16}
    causal_lm({**MISTRAL, "sliding_window": None}).save_pretrained(tmp_path / "teacher")
    values = {"task": {"name": "language_modeling"}, "data": data, "teacher": str(tmp_path / "teacher"), "steps": 1}
    values |= {"student": {"name": "transformers", "config": MISTRAL}, "losses": [{"name": "shd"}], "batch_size": 2}
    with pytest.raises(
        UserError, match=r"first in the loss alone \(plain pass\); shd is infinite where a student hides keys"
    ):
        run({**values, "check_teacher": "no", "run": str(tmp_path / "run")})


def test_a_student_that_drops_layers_is_refused(tmp_path):
    """Layers that ran were paired with the teacher's by their order: the first with the third."""
    made = task(lines(tmp_path), pack=False, length=10)
    student, teacher = (causal_lm({**OPT, "num_hidden_layers": 4, "layerdrop": drop}) for drop in (0.3, 0.0))
    distiller = Distiller(made, student.train(), [SHD()])
    torch.manual_seed(0)

    def train() -> None:
        for step in range(6):
            (batch,) = made.draw(Draws(0, step, range(2), 2))
            distiller.terms(batch, teacher.eval())

    with pytest.raises(
        UserError, match=r"layers\.\d\.self_attn of the student did not run in this forward, so that layers cannot be"
    ):
        train()
