"""Text as sequences: splits do not overlap, batches are functions of their indices, refusals are a line."""

import numpy as np
import pytest
import torch
from language import TEXT, lines

from dit_shd.core.errors import UserError
from dit_shd.core.plugins import Plugin
from dit_shd.core.rng import Draws
from dit_shd.data.datasets import DATASETS

DRAWS = Draws(0, 0, range(1), 1)


def text(path, **options):
    return DATASETS.build(Plugin("text", {"path": path, "length": 16, **options}))


def words(data):
    """The text of a dataset's sequences, documents between bars."""
    batch = data.batch(np.arange(len(data)), DRAWS)
    return data.tokenizer.decode(batch["tokens"][batch["documents"] >= 0])


@pytest.mark.parametrize("by", ["document", "position"])
@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_splits_are_parts_of_the_whole(tmp_path, by, share):
    path = lines(tmp_path)
    parts = {
        split: text(path, document="line", held_out=share, by=by, split=split)
        for split in ("train", "validation", "all")
    }
    sizes = {split: part.text_bytes for split, part in parts.items()}
    assert sizes["train"] + sizes["validation"] == pytest.approx(sizes["all"], abs=2)  # but for lone spaces
    assert sizes["validation"] / sizes["all"] == pytest.approx(share, abs=0.07)
    documents = {split: {d.text for d in part._part(split)} for split, part in parts.items()}
    if by == "document":
        assert not documents["train"] & documents["validation"]
        assert documents["train"] | documents["validation"] == documents["all"]
    else:
        assert len(documents["train"]) == 40
    held = parts["train"].held_out
    assert (held.split, held.tokenizer) == ("validation", parts["train"].tokenizer)
    assert words(held) == words(parts["validation"])


def test_parts_of_a_count_do_not_overlap_and_are_drawn_once(tmp_path):
    """As the paper splits Dolly: 12,500, 1,000, 500."""
    path = lines(tmp_path)
    options = {"document": "line", "counts": [20, 8, 4]}
    parts = [text(path, split=split, **options).documents for split in ("train", "validation", "test")]
    assert [len(part) for part in parts] == [20, 8, 4]
    texts = [d.text for part in parts for d in part]
    assert len(set(texts)) == 32 and texts != sorted(
        texts, key=[d.text for d in text(path, split="all", document="line").documents].index
    )
    train = text(path, **options)
    assert train.documents == parts[0] and train.held_out.documents == parts[1]


def test_every_document_begins_and_ends(tmp_path):
    data = text(lines(tmp_path), document="line", split="all", pack=False, length=80)
    batch = data.batch(np.arange(len(data)), DRAWS)
    for tokens, documents in zip(batch["tokens"], batch["documents"]):
        real = tokens[documents >= 0]
        assert real[0] == real[-1] == data.tokenizer.end
        assert not (real[1:-1] == data.tokenizer.end).any()
    assert data.token_counts().sum() == (batch["documents"] >= 0).sum()
    assert data.cut_tokens == 0
    assert text(lines(tmp_path), document="line", split="all", pack=False, length=8).cut_tokens > 0


def test_a_batch_is_a_function_of_its_indices(tmp_path):
    data = text(lines(tmp_path), document="line", prompt=None)
    whole, other = data.batch(np.array([3, 1, 2]), DRAWS), data.batch(np.array([2]), Draws(5, 7, range(1), 9))
    assert whole.keys() == other.keys() == {"tokens", "documents", "prompt"}
    for name, tensor in whole.items():
        assert tensor.shape == (3, 17)
        assert torch.equal(tensor[2:], other[name])


def test_a_tokenizer_is_trained_on_the_training_split_alone(tmp_path):
    (tmp_path / "a.txt").write_text(TEXT * 3 + "\n" + "zq" * 200)
    file = tmp_path / "bpe.json"
    data = text(
        str(tmp_path / "a.txt"),
        document="paragraph",
        held_out=0.4,
        by="position",
        tokenizer=str(file),
        vocabulary=290,
    )
    assert data.sizes == {"vocab_size": 290}
    trained = file.read_bytes()
    other = text(str(tmp_path / "a.txt"), split="validation", by="position", tokenizer=str(file))
    assert file.read_bytes() == trained and other.tokenizer.vocabulary == 290


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"data\.split: train is empty: 1 documents, 1 held out|data\.split: validation is empty"),
        ({"held_out": 0}, r"validation is empty: .* 0 held out by document; data\.held_out above 0, or none of what"),
        ({"split": "test"}, r"data\.split: test is a part of counts"),
        ({"counts": [1, 1]}, r"data\.counts: wanted documents of train, validation, test, .* found \[1, 1\]"),
        ({"counts": [1, 1, 9]}, r"data\.counts: wanted at most the 1 documents that there are, found 11"),
        ({"length": 1}, r"data\.length: wanted 2 tokens or more, found 1"),
        ({"held_out": 1.0}, r"data\.held_out: wanted a share from 0 and below 1, found 1"),
        ({"document": "page"}, r"data\.document: wanted file \| paragraph \| line"),
    ],
)
def test_refusals(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        text(lines(tmp_path), **{"split": "validation", **options})


def test_one_learns_before_training_that_nothing_is_held_out(tmp_path, caplog):
    """A book is one document: the command that the run ends with had been the first to say so."""
    for options, told in (
        ({}, True),
        ({"by": "position"}, False),
        ({"document": "line"}, False),
        ({"held_out": 0}, False),
    ):
        caplog.clear()
        text(lines(tmp_path), split="train", **options)
        warning = "nothing is held out of 1 documents; a larger data.held_out, by=position, or of text document=line"
        assert (warning in caplog.text) == told, options


def test_it_holds_no_images(tmp_path):
    data = text(lines(tmp_path), document="line")
    for ask in (data.images, data.labels):
        with pytest.raises(UserError, match="data text: holds text"):
            ask()


def test_a_tokenizer_has_no_token_of_held_out_text(tmp_path):
    """One of 262 has a few merges alone: those of the held out lines, were they in it."""
    (tmp_path / "a.txt").write_text("the cat sat on the mat\n" * 20 + "zqzqzqzqzqzq\n" * 20)
    options = {"document": "file", "by": "position", "held_out": 0.362, "length": 8}
    file = tmp_path / "bpe.json"
    data = text(str(tmp_path / "a.txt"), **options, tokenizer=str(file), vocabulary=262)
    assert "zq" not in file.read_text()
    assert "z" not in "".join(d.text for d in data.documents)


def test_bytes_are_those_of_letters_beyond_ascii(tmp_path):
    (tmp_path / "a.txt").write_text("äöü\nabc\n", "utf-8")
    assert text(str(tmp_path / "a.txt"), document="line", split="all").text_bytes == 6 + 3


def test_answers_to_prompts_are_not_divided_by_position(tmp_path):
    """Half an answer that ends in the end token is learned, and the other half is measured without its beginning."""
    table = tmp_path / "chat.jsonl"
    table.write_text('{"question": "a b", "text": "c d e f"}\n' * 4)
    assert text(str(table), prompt="{question}\n", held_out=0.5).documents
    with pytest.raises(UserError, match=r"^data\.by: position would cut answers in two .*; wanted document for texts"):
        text(str(table), prompt="{question}\n", by="position")
    assert text(str(table), by="position", held_out=0.5).documents


@pytest.mark.parametrize("at_once", [1, 7])
def test_documents_become_the_same_tokens_in_parts(tmp_path, monkeypatch, at_once):
    path = lines(tmp_path)
    whole = text(path, document="line")
    monkeypatch.setattr("dit_shd.data.datasets.text.AT_ONCE", at_once)
    parts = text(path, document="line")
    assert len(whole) == len(parts) > 1 and len(whole.documents) > 7
    for key, tensor in whole.batch(np.arange(len(whole)), DRAWS).items():
        assert torch.equal(parts.batch(np.arange(len(parts)), DRAWS)[key], tensor)
