"""Text that is held out: never learned, and its perplexity and bits of a byte."""

import json
import math

import pytest
import torch
from language import GPT2, causal_lm, lines
from text_tasks import naive_nats, task

from dit_shd.core.errors import UserError
from dit_shd.tasks.language_modeling import LanguageModeling, TextEvaluation


@pytest.mark.parametrize("split", ["all", "validation"])
def test_text_that_is_learned_is_not_what_is_held_out(tmp_path, split):
    made = task(lines(tmp_path), split=split)
    with pytest.raises(UserError, match=f"data.split: {split} has the documents that validate_every evaluates on"):
        made.check_evaluation(None, None)
    task(lines(tmp_path)).check_evaluation(None, None)


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"sequences": 0}, {"batch_size": -1}])
def test_ranges_of_the_evaluation_are_checked_at_once(wrong):
    with pytest.raises(UserError, match=rf"task\.evaluation\.{next(iter(wrong))}: wanted"):
        LanguageModeling(evaluation=TextEvaluation(**wrong))


def test_prompts_that_leave_nothing_to_learn_are_said_or_refused(tmp_path):
    file = tmp_path / "x.jsonl"
    rows = [{"q": "long " * 9, "a": "x"}, {"q": "?", "a": "y"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = task(str(file), pack=False, prompt="{q}", column="a", split="all")
    assert any("1 of 2 documents have nothing to learn" in line for line in made.remarks(torch.nn.Identity()))
    made.check("student", causal_lm(GPT2))
    file.write_text(json.dumps(rows[0]))
    made = task(str(file), pack=False, prompt="{q}", column="a", split="all")
    with pytest.raises(UserError, match=r"the prompts of all 1 documents fill data\.length=16, and nothing is left"):
        made.check("student", causal_lm(GPT2))


@pytest.mark.parametrize("size", [1, 5])
def test_perplexity_is_over_every_held_out_token(tmp_path, size):
    model = causal_lm(GPT2)
    made = task(lines(tmp_path), evaluation=TextEvaluation(batch_size=size), pack=False, length=31, held_out=0.3)
    held = made.dataset.held_out
    figures = made.perplexity(model, held)
    end = held.tokenizer.end
    rows = [[end, *d.text.encode(), end][:32] for d in held._part("validation")]
    nats = naive_nats(model, rows)
    assert figures["tokens"] == len(nats)
    assert figures["nats"] == pytest.approx(sum(nats) / len(nats), rel=1e-5)
    assert figures["perplexity"] == pytest.approx(math.exp(sum(nats) / len(nats)), rel=1e-4)
    assert ("bits_per_byte" in figures) == (held.cut_tokens == 0)
    assert made.dataset is not held


def test_some_held_out_sequences_are_spread_evenly_and_have_no_bits_of_a_byte(tmp_path):
    """The bytes are those of the whole text."""
    model, some = causal_lm({**GPT2, "n_positions": 80}), TextEvaluation(sequences=3, batch_size=2)
    made = task(lines(tmp_path), evaluation=some, pack=False, length=79, held_out=0.3)
    held = made.dataset.held_out
    documents, end = list(held._part("validation")), held.tokenizer.end
    last = len(documents) - 1
    assert last > 3 and not held.cut_tokens
    figures = made.perplexity(model, held)
    nats = naive_nats(model, [[end, *documents[i].text.encode(), end] for i in (0, round(last / 2), last)])
    assert figures["tokens"] == len(nats)
    assert figures["nats"] == pytest.approx(sum(nats) / len(nats), rel=1e-5)
    assert "bits_per_byte" not in figures


def test_bits_of_a_uniform_guess_are_those_of_the_vocabulary(tmp_path):
    model = causal_lm(GPT2, std=0.0)
    made = task(lines(tmp_path), length=30)
    figures = made.perplexity(model, made.dataset.held_out)
    held = made.dataset.held_out
    assert figures["perplexity"] == pytest.approx(257)
    assert figures["bits_per_byte"] == pytest.approx(math.log2(257) * figures["tokens"] / held.text_bytes)
