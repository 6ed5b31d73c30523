"""Language modeling: what counts, what is seen, and what a loss on attention takes of it, against naive mathematics."""

import dataclasses
import json
import math
from dataclasses import replace

import oracle
import pytest
import torch
from language import GPT2, LLAMA, TEXT, causal_lm, lines
from runs import run

from dit_shd.attention.recording.attach import capture
from dit_shd.core.config import make
from dit_shd.core.errors import UserError
from dit_shd.core.plugins import Plugin
from dit_shd.core.rng import Draws
from dit_shd.data.datasets import DATASETS
from dit_shd.data.packing import PADDING, positions
from dit_shd.distillation.distiller import Distiller
from dit_shd.distillation.losses import LOSSES
from dit_shd.distillation.losses.shd import SHD
from dit_shd.integrations.trainer_batches import IGNORED, query_rows
from dit_shd.models.loading import load
from dit_shd.profiling.flops import forward_operations
from dit_shd.profiling.memory import step_memory
from dit_shd.tasks.language_modeling import LanguageModeling, TextEvaluation
from dit_shd.training.config import TrainConfig
from dit_shd.training.dry_run import step_shape

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
SMALL |= {"intermediate_size": 24, "max_position_embeddings": 32, "vocab_size": 257}
MISTRAL = {"model_type": "mistral", "sliding_window": 5, **SMALL}
GEMMA = {"model_type": "gemma3_text", "sliding_window": 5, "head_dim": 4, **SMALL}
MODELS = {"gpt2": GPT2, "llama": LLAMA, "mistral": MISTRAL, "gemma3_text": GEMMA}


def task(path, student=None, evaluation=None, separate=True, prompt_rows=False, **data):
    data = {"path": path, "length": 16, "document": "line", **data}
    made = LanguageModeling(separate, prompt_rows, evaluation or TextEvaluation())
    made.use(DATASETS.build(Plugin("text", data)), student)
    return made


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


def batch_of(made, step=0, positions=range(8), size=8):
    (batch,) = made.draw(Draws(0, step, positions, size))
    return batch


def test_what_counts_in_a_step_is_counted_once_for_all_its_micro_batches(tmp_path, monkeypatch):
    made = task(instructions(tmp_path), pack=False, prompt="Q: {q}", column="a")
    read, batch = [], made.dataset.batch

    def counted(indices, draws):
        read.append(len(indices))
        return batch(indices, draws)

    monkeypatch.setattr(made.dataset, "batch", counted)
    whole = [batch_of(made, step) for step in (0, 1)]
    for step in (0, 1, 0):
        read.clear()
        parts = [batch_of(made, step, range(i, i + 2)) for i in range(0, 8, 2)]
        assert torch.equal(torch.cat([part.target_weight for part in parts]), whole[step].target_weight)
        assert sorted(read) == [2, 2, 2, 2, 8]
    read.clear()
    assert not torch.equal(batch_of(made, positions=range(2), size=2).target_weight, parts[0].target_weight)
    assert read == [2, 2]


def instructions(folder):
    """Questions and answers as JSON lines."""
    file = folder / "x.jsonl"
    rows = [{"q": TEXT[: 3 + i % 7], "a": TEXT[i : i + 4 + i % 9]} for i in range(24)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def naive_nats(model, rows, prompts=None):
    """-log p of every token but the first of some documents, each run by itself; those of prompts left out."""
    nats = []
    for row, skipped in zip(rows, prompts or [0] * len(rows)):
        logits = model(input_ids=torch.tensor([row])).logits[0].double()
        each = -logits.log_softmax(-1)[torch.arange(len(row) - 1), row[1:]]
        nats += each[max(0, skipped - 1) :].tolist()
    return nats


# What counts


@pytest.mark.parametrize("name", MODELS)
def test_packed_documents_are_as_if_each_were_alone(tmp_path, name):
    """Of every sequence, each document's piece by itself through the model: the same mean over all target tokens."""
    model, made = causal_lm(MODELS[name]), task(lines(tmp_path), split="all")
    batch = batch_of(made)
    assert batch.positions is not None
    found = made.losses(made.predict(model, batch), batch)["cross_entropy"]
    sample = made.dataset.batch(batch.indices.numpy(), None)
    pieces = []
    for tokens, documents in zip(sample["tokens"], sample["documents"]):
        pieces += [tokens[documents == i].tolist() for i in documents.unique() if i >= 0]
    nats = naive_nats(model, pieces)
    assert float(found.mean().detach()) == pytest.approx(sum(nats) / len(nats), rel=1e-5)


def test_documents_with_a_sequence_each_need_no_model_that_keeps_packs_apart(tmp_path):
    """What the line about packs says was refused with the same line."""
    model = causal_lm(OPT)
    with pytest.raises(UserError, match=r"data\.pack=false gives each a sequence of its own"):
        task(lines(tmp_path)).check("student", model)
    task(lines(tmp_path), pack=False).check("student", model)


def test_padding_and_prompts_do_not_count(tmp_path):
    model = causal_lm(LLAMA)
    made = task(instructions(tmp_path), pack=False, column="a", prompt="{q}: ", split="all", length=30)
    batch = batch_of(made)
    assert torch.equal(batch.positions, torch.arange(30).expand(8, 30))
    found = made.losses(made.predict(model, batch), batch)["cross_entropy"]
    known = made.dataset.tokenizer
    documents = [made.dataset._documents[i] for i in batch.indices]
    rows = [[known.end, *(d.prompt + d.text).encode(), known.end] for d in documents]
    nats = naive_nats(model, rows, [1 + len(d.halves[0]) for d in documents])
    assert float(found.mean().detach()) == pytest.approx(sum(nats) / len(nats), rel=1e-5)


@pytest.mark.parametrize("pack", [True, False])
def test_tokens_with_which_a_tokenizer_begins_are_not_learned(tmp_path, pack):
    """GLM's begins with two, of which the first would predict the second, always rightly."""
    from tokenizers import Tokenizer, models, processors

    model = Tokenizer(models.WordLevel({"[gMASK]": 0, "<sop>": 1, "<end>": 2, "a": 3}, unk_token="a"))
    model.add_special_tokens(["[gMASK]", "<sop>", "<end>"])
    begin = [("[gMASK]", 0), ("<sop>", 1)]
    model.post_processor = processors.TemplateProcessing(single="[gMASK] <sop> $A", special_tokens=begin)
    model.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}))
    made = task(lines(tmp_path, 9), pack=pack, length=16, tokenizer=str(tmp_path), held_out=0.0)
    batch = batch_of(made)
    targets = batch.targets[batch.target_weight > 0]
    assert {0, 1} <= set(batch.tokens.flatten().tolist()) and set(targets.tolist()) == {2, 3}


@pytest.mark.parametrize("pack", [True, False])
def test_parts_of_a_batch_add_up_to_the_batch(tmp_path, pack):
    """Samples have other numbers of targets, and a step's mean is over its tokens however it is divided."""
    model, made = causal_lm(GPT2), task(lines(tmp_path), pack=pack, length=30)

    def value(positions):
        batch = batch_of(made, positions=positions)
        return made.losses(made.predict(model, batch), batch)["cross_entropy"].detach(), batch

    whole, batch = value(range(8))
    parts = [value(range(i, i + 2))[0] for i in range(0, 8, 2)]
    torch.testing.assert_close(whole, torch.cat(parts))
    for weight in (batch.target_weight, batch.query_weight):
        assert float(weight.mean()) == pytest.approx(1)
        assert len(weight[weight > 0].unique()) == 1


def test_documents_may_be_let_attend_to_each_other(tmp_path):
    apart, together = task(lines(tmp_path)), task(lines(tmp_path), separate=False)
    assert batch_of(apart).positions is not None and batch_of(together).positions is None
    assert torch.equal(batch_of(apart).target_weight, batch_of(together).target_weight)


# What losses on attention take


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("pack", [True, False])
def test_shd_is_the_oracles_over_the_rows_that_count(tmp_path, name, pack):
    """Values and gradients of every parameter, by whole maps, in float64; sliding windows and grouped keys as run."""
    made = task(instructions(tmp_path), pack=pack, column="a", prompt="{q}: ", split="all", length=20)
    batch = batch_of(made, positions=range(4), size=4)
    few = {"n_head": 2} if name == "gpt2" else {"num_attention_heads": 2, "num_key_value_heads": 1}
    teacher, student = causal_lm(MODELS[name]).double(), causal_lm({**MODELS[name], **few}, seed=1).double()
    assert 0 < float((batch.query_weight > 0).double().mean()) < 1
    distiller = Distiller(made, student, [SHD(weight=1.0)])
    terms, _ = distiller.terms(batch, teacher)
    with capture(teacher) as t, capture(student) as s:
        for model in (teacher, student):
            made.predict(model, batch)
    want = torch.zeros((), dtype=torch.float64)
    root = batch.query_weight.double().sqrt()
    for one, other in zip(t.values(), s.values()):
        a, b = one.map().detach(), other.map()
        x = oracle.head_outputs(one.value[:, one.key_heads(range(4))], one.out).detach()
        w, _ = oracle.merge_progressively(root[:, None, :, None] * a, x, [[0, 1], [2, 3]])
        rows = [oracle.divergence(a[:, :, i : i + 1], b[:, :, i : i + 1], w) for i in range(a.shape[2])]
        want = want + (torch.stack(rows, 1) * batch.query_weight).mean()
    torch.testing.assert_close(terms["shd"], want)
    ours, theirs = (
        torch.autograd.grad(value, list(student.parameters()), allow_unused=True) for value in (terms["shd"], want)
    )
    assert sum(g is not None for g in ours) >= 4
    for x, y in zip(ours, theirs):
        assert (x is None) == (y is None)
        if x is not None:
            torch.testing.assert_close(x, y, rtol=1e-7, atol=1e-10)


@pytest.mark.parametrize("name", sorted({*LOSSES.names()} - {"lift", "nkd", "repa", "vitkd"}))
def test_what_padding_holds_changes_no_bit(tmp_path, name):
    """Of any loss that serves text, its projectors' gradients included."""
    made = task(lines(tmp_path), pack=False, length=30)
    batch = batch_of(made)
    padded = torch.cat([batch.query_weight == 0, torch.ones(8, 1, dtype=torch.bool)], 1)
    padded[:, 1:] &= torch.cat([batch.target_weight[:, 1:] == 0, torch.ones(8, 1, dtype=torch.bool)], 1)
    padded[torch.arange(8), (~padded).sum(1).clamp(max=30)] = False  # the last target
    others = dataclasses.replace(batch, tokens=torch.where(padded, 7, batch.tokens))
    assert not torch.equal(others.tokens, batch.tokens)
    heads = 2 if name == "shd" else 4
    distiller = Distiller(made, causal_lm({**GPT2, "n_head": heads}, seed=1), [LOSSES.build(Plugin(name), "losses.0")])
    teachers = {"teacher": causal_lm(GPT2)}
    distiller.build([batch], teachers, 0)
    leaves = [p for p in distiller.parameters() if p.requires_grad]

    def gradients(of):
        loss, _ = distiller(of, teachers)
        return [loss.detach(), *torch.autograd.grad(loss, leaves, materialize_grads=True)]

    for one, other in zip(gradients(batch), gradients(others)):
        assert torch.equal(one, other)


@pytest.mark.parametrize("prompt_rows", [False, True])
@pytest.mark.parametrize("pack", [True, False])
def test_the_rows_that_count_are_those_of_other_trainers(tmp_path, pack, prompt_rows):
    """Of documents that end in a sequence and that are cut by its end, packed and padded."""
    options = {"column": "a", "prompt": "{q}: ", "split": "all", "length": 14}
    made = task(instructions(tmp_path), pack=pack, prompt_rows=prompt_rows, **options)
    batch, draws = batch_of(made), Draws(0, 0, range(8), 8)
    sample = made.dataset.batch(draws.indices(len(made.dataset)), draws)
    documents, labels = sample["documents"], sample["tokens"].masked_fill(sample["prompt"], IGNORED)
    inputs = {"labels": labels.masked_fill(documents == PADDING, IGNORED), "attention_mask": (documents >= 0).long()}
    if pack:
        inputs["position_ids"] = torch.from_numpy(positions(documents.numpy()))
    rows = query_rows(inputs, prompt_rows)
    assert not rows[:, -1].any()
    assert torch.equal(batch.query_weight > 0, rows[:, :-1])
    assert pack or 0 < int((documents[:, -1] == PADDING).sum()) < len(documents)


def test_rows_of_prompts_can_take_part(tmp_path):
    options = {"pack": False, "column": "a", "prompt": "{q}: ", "split": "all", "length": 30}
    without, within = (task(instructions(tmp_path), prompt_rows=rows, **options) for rows in (False, True))
    one, other = batch_of(without), batch_of(within)
    sample = without.dataset.batch(Draws(0, 0, range(8), 8).indices(len(without.dataset)), Draws(0, 0, range(8), 8))
    there, prompt = sample["documents"][:, 1:] != PADDING, sample["prompt"][:, :-1]
    assert torch.equal(one.query_weight > 0, there & ~prompt), "rows whose own token is no prompt's"
    assert torch.equal(other.query_weight > 0, there), "whose next token is there"
    assert prompt.any()
    assert torch.equal(one.target_weight, other.target_weight)
    with pytest.raises(UserError, match=r"a layer has 7 query rows, the batch 30 tokens"):
        one.row_weight(7)


# Evaluation


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


# Refusals


BERT = {"model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
BERT |= {"intermediate_size": 24, "vocab_size": 257}
OPT = {"model_type": "opt", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 257}
OPT |= {"ffn_dim": 24, "word_embed_proj_dim": 16, "max_position_embeddings": 40}


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


def test_cut_documents_are_said(tmp_path):
    (line,) = task(lines(tmp_path), pack=False, length=10).remarks(torch.nn.Identity())
    assert "tokens are beyond data.length=10" in line
    assert not task(lines(tmp_path)).remarks(torch.nn.Identity())


def test_what_is_dropped_is_a_function_of_the_seed_and_the_step(tmp_path):
    made = task(lines(tmp_path))
    model = causal_lm({**GPT2, "resid_pdrop": 0.3, "attn_pdrop": 0.3}).train()
    before = torch.get_rng_state()
    one, again, other = (made.predict(model, batch_of(made, step)).prediction for step in (0, 0, 1))
    assert torch.equal(one, again) and torch.equal(before, torch.get_rng_state())
    same = dataclasses.replace(batch_of(made, 0), dropout_seeds=batch_of(made, 1).dropout_seeds)
    assert not torch.equal(one, made.predict(model, same).prediction)
    assert other.shape == one.shape


def test_a_step_is_counted_at_the_datas_length_before_they_are_read():
    """And at a model's longest sequence only where the data say nothing."""
    model, made = causal_lm(GPT2), LanguageModeling()
    (longest,) = made.example(model, 2, torch.device("cpu"))
    assert longest.given.shape == (2, GPT2["n_positions"])
    made.expect(Plugin("text", {"path": "not/there", "length": 9}))
    (batch,) = made.example(model, 2, torch.device("cpu"))
    assert batch.given.shape == (2, 9)


def test_masks_of_packed_documents_are_counted(tmp_path):
    """PyTorch makes numbers of a boolean mask, and each layer keeps its own: the count was 0.72 of what was held."""
    model, n, b = causal_lm(LLAMA), 64, 8
    counts = []
    for separate, pack in ((True, True), (False, True), (True, False)):
        config = make(TrainConfig, {"batch_size": b, "data": {"name": "text", "path": "x", "length": n, "pack": pack}})
        made = LanguageModeling(separate)
        made.expect(config.data)
        counts.append(step_memory(replace(step_shape(config, b), task=made), model, None).parts["activations"])
    kept = (LLAMA["num_hidden_layers"] * 4 + 1) * b * n * n
    assert counts[1] == counts[2] and counts[0] - counts[1] == pytest.approx(kept, rel=0.15)


def test_operations_of_a_model_that_makes_places_of_its_mask_are_counted(tmp_path):
    """OPT takes them of a mask [b,n]: where documents are not packed, training ended before its first step."""
    made = task(lines(tmp_path), pack=False, length=10)
    assert forward_operations(causal_lm(OPT), made) > 0


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
