"""Language modeling: what counts, what is seen, and what a loss on attention takes of it, against naive mathematics."""

import dataclasses
import json
from dataclasses import replace

import oracle
import pytest
import torch
from language import GPT2, LLAMA, MISTRAL, OPT, SMALL, TEXT, causal_lm, lines
from text_tasks import batch_of, naive_nats, task

from dit_shd.attention.recording.attach import capture
from dit_shd.core.config import make
from dit_shd.core.errors import UserError
from dit_shd.core.plugins import Plugin
from dit_shd.core.rng import Draws
from dit_shd.data.packing import PADDING, positions
from dit_shd.distillation.distiller import Distiller
from dit_shd.distillation.losses import LOSSES
from dit_shd.distillation.losses.shd import SHD
from dit_shd.integrations.trainer_batches import IGNORED, query_rows
from dit_shd.profiling.flops import forward_operations
from dit_shd.profiling.memory import step_memory
from dit_shd.tasks.language_modeling import LanguageModeling
from dit_shd.training.config import TrainConfig
from dit_shd.training.dry_run import step_shape

GEMMA = {"model_type": "gemma3_text", "sliding_window": 5, "head_dim": 4, **SMALL}
MODELS = {"gpt2": GPT2, "llama": LLAMA, "mistral": MISTRAL, "gemma3_text": GEMMA}


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
