"""Responses of language models: drawn as the softmax says, by their own random numbers, and scored."""

import json
import math

import pytest
import torch
import yaml
from language import GPT2, causal_lm

from dit_shd.analysis.responses import KeyedSampling, RougeConfig, _check_letters, _score, responses
from dit_shd.cli.program import main
from dit_shd.core.config import make
from dit_shd.core.errors import UserError
from dit_shd.data.document_rows import Document
from dit_shd.data.tokenizer import ByteTokenizer
from dit_shd.evaluation.rouge import rouge_l

pytest.importorskip("rouge_score")
PROMPTS = [Document("x", prompt) for prompt in ("Name a city.", "1 + 1 =", "Why?", "A longer one than all others")]


def settings(**changes):
    return make(RougeConfig, {"models": ["m"], "sets": "s.yaml", "response_tokens": 6, **changes})


def test_tokens_are_drawn_as_often_as_the_softmax_says():
    scores = torch.tensor([[1.0, 0.0, -1.0, float("-inf"), 2.0]])
    count, drawn = 4000, torch.zeros(5)
    for temperature in (1.0, 0.5):
        sampling, drawn = KeyedSampling(0, range(count), temperature), torch.zeros(5)
        drawn = sampling(torch.zeros(count, 1), scores.expand(count, 5)).argmax(1).bincount(minlength=5)
        want = (scores[0] / temperature).softmax(0)
        assert drawn[3] == 0
        for number, p in zip(drawn.tolist(), want.tolist()):
            assert abs(number - count * p) <= 4 * math.sqrt(count * p * (1 - p)) + 1e-9


def test_a_response_does_not_depend_on_its_batch():
    model, tokenizer = causal_lm(GPT2, std=0.1), ByteTokenizer()
    found = [responses(model, tokenizer, PROMPTS, 3, settings(batch_size=size)) for size in (1, 3, 4)]
    assert found[0] == found[1] == found[2]
    assert responses(model, tokenizer, PROMPTS, 4, settings()) != found[0]
    with pytest.raises(
        UserError, match="wanted less than the 32 tokens that the model takes with its prompt, found 31"
    ):
        responses(model, tokenizer, PROMPTS, 3, settings(response_tokens=31))


def test_temperature_0_takes_the_likeliest_token():
    model, tokenizer = causal_lm(GPT2), ByteTokenizer()
    found = responses(model, tokenizer, PROMPTS[:2], 0, settings(temperature=0.0, prompt_tokens=8))
    for document, answer in zip(PROMPTS, found):
        tokens = [tokenizer.end, *document.prompt.encode()[:8]]
        drawn = []
        while len(drawn) < 6 and tokenizer.end not in drawn:
            with torch.no_grad():
                drawn.append(int(model(input_ids=torch.tensor([tokens + drawn])).logits[0, -1].argmax()))
        assert answer == tokenizer.decode([token for token in drawn if token != tokenizer.end])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_models_own_settings_of_generation_change_nothing(temperature):
    """As many instruct models have them; a student that began as one exports them."""
    model, tokenizer = causal_lm(GPT2, std=0.1), ByteTokenizer()
    plain = responses(model, tokenizer, PROMPTS, 3, settings(temperature=temperature))
    others = {"repetition_penalty": 1.7, "no_repeat_ngram_size": 1, "min_new_tokens": 5, "max_length": 9}
    model.network.generation_config.update(**others)
    assert responses(model, tokenizer, PROMPTS, 3, settings(temperature=temperature)) == plain
    assert model.network.generation_config.repetition_penalty == 1.7


def test_the_command_scores_every_model_on_every_set(tmp_path, capsys):
    for seed, name in enumerate(("one", "two")):
        model = causal_lm(GPT2, seed)
        model.tokenizer = ByteTokenizer()
        model.save_pretrained(tmp_path / name)
    rows = [{"q": "Say a", "a": ["a", "b"]}, {"q": "Say c", "a": "c"}]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plugin = {"name": "text", "path": str(tmp_path / "x.jsonl"), "column": "a", "prompt": "{q}: "}
    (tmp_path / "sets.yaml").write_text(yaml.safe_dump({"first": plugin, "second": dict(plugin)}))
    words = [str(tmp_path / name) for name in ("one", "two")]
    words = ["rouge", *words, f"sets={tmp_path / 'sets.yaml'}", "seeds=[1, 2]", "response_tokens=4"]
    assert main([*words, f"out={tmp_path / 'out.json'}"]) == 0
    table, record = capsys.readouterr().out, json.loads((tmp_path / "out.json").read_text())
    assert [line.split()[0] for line in table.splitlines()] == ["model", "one", "two"]
    for model in ("one", "two"):
        assert record[model]["first"] == record[model]["second"]
        for score, seed in zip(record[model]["first"]["rouge_l"], ("1", "2")):
            first, second = record[model]["first"]["responses"][seed]
            assert score == pytest.approx(50 * (rouge_l(first, ["a", "b"]) + rouge_l(second, ["c"])))
    assert main([*words[:2], *words[3:], "samples=1", f"out={tmp_path / 'some.json'}"]) == 0
    some = json.loads((tmp_path / "some.json").read_text())["one"]["first"]["responses"]
    assert some == {seed: each[:1] for seed, each in record["one"]["first"]["responses"].items()}
    assert main([*words, f"out={tmp_path / 'out.json'}"]) == 2
    plugin.pop("prompt")
    (tmp_path / "sets.yaml").write_text(yaml.safe_dump({"first": plugin}))
    assert main(words) == 2
    assert "sets: first: wanted text with prompts" in capsys.readouterr().err


def test_all_that_can_be_refused_is_refused_before_the_first_response(tmp_path, capsys):
    model = causal_lm(GPT2)
    model.tokenizer = ByteTokenizer()
    model.save_pretrained(tmp_path / "gpt")
    (tmp_path / "x.jsonl").write_text(json.dumps({"q": "Say a", "a": "a"}) + "\n")
    plugin = {"name": "text", "path": str(tmp_path / "x.jsonl"), "column": "a", "prompt": "{q}: "}
    sets = {"good": {"first": plugin}, "bad": {"first": plugin, "second": {**plugin, "path": str(tmp_path / "y")}}}
    for name, content in sets.items():
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(content))
    (tmp_path / "file").write_text("")

    def refused(*words):
        assert main(["rouge", str(tmp_path / "gpt"), *words]) == 2
        return capsys.readouterr().err

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dit_shd.analysis.responses.responses", lambda *_: pytest.fail("a model answered"))
        good = f"sets={tmp_path / 'good.yaml'}"
        assert f"{tmp_path / 'y'}" in refused(f"sets={tmp_path / 'bad.yaml'}", "response_tokens=4")
        assert "wanted a causal language model" in refused("asset:digits_teacher", good, "response_tokens=4")
        assert "wanted a path in a folder" in refused(good, f"out={tmp_path / 'file' / 'r.json'}")
        assert "seeds: wanted at least one seed" in refused(good, "seeds=[]")
        assert "response_tokens: wanted less than the 32" in refused(good, "response_tokens=31")
    words = ["rouge", str(tmp_path / "gpt"), good, "seeds=[1]", "response_tokens=4"]
    assert main([*words, f"out={tmp_path / 'new' / 'r.json'}"]) == 0
    assert (tmp_path / "new" / "r.json").is_file()


def test_references_that_rouge_cannot_read_are_refused_or_counted(caplog):
    latin, other = Document("Paris", "?"), Document("Москва", "?")
    with pytest.raises(UserError, match="sets: x: 2 of 3 references are in other letters than a to z"):
        _check_letters("x", [latin, other, other])
    _check_letters("x", [latin, latin, other])
    assert "1 of 3 references" in caplog.text
    caplog.clear()
    _check_letters("x", [latin])
    assert not caplog.text


def test_the_best_of_several_references_counts():
    assert _score("a b c", Document("x y z", others=("a b c",))) == 100 and _score("a b c", Document("x y z")) == 0
