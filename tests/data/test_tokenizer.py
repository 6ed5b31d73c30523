"""Tokenizers: the text comes back, ends are ends, what is trained is kept, what is read is checked."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from language import TEXT

from dit_shd.core.errors import UserError
from dit_shd.data.document_rows import Columns, Document
from dit_shd.data.tokenizer import (
    END,
    ByteTokenizer,
    Tokenizer,
    open_tokenizer,
    read_tokenizer,
    vocabulary_beside,
)


@pytest.fixture(scope="module")
def bytes_of_text():
    return ByteTokenizer()


@given(text=st.text(max_size=40))
def test_bytes_are_the_bytes_and_come_back(bytes_of_text, text):
    (tokens,) = bytes_of_text.encode([text])
    assert list(tokens) == list(text.encode())
    assert bytes_of_text.decode(tokens) == text
    assert list(tokens) == list(Tokenizer.encode(bytes_of_text, [text])[0])


def test_a_bpe_is_trained_once_and_then_read(tmp_path, caplog):
    file = tmp_path / "new" / "bpe.json"
    first = open_tokenizer(str(file), 300, [TEXT] * 3)
    (tokens,) = first.encode([TEXT])
    assert first.vocabulary == 300 and len(tokens) < len(TEXT) / 2 and first.decode(tokens) == TEXT
    caplog.set_level("INFO", "dit_shd")
    again = open_tokenizer(str(file), 300, iter(()))  # nothing is read: it is there
    assert f"{file} was there and is used as it is, whatever text it was trained on" in caplog.text
    assert again.encode([TEXT])[0].tolist() == tokens.tolist()
    other = open_tokenizer(str(tmp_path / "other.json"), 300, [TEXT] * 3)
    assert (tmp_path / "other.json").read_bytes() == file.read_bytes() and other.vocabulary == 300
    with pytest.raises(UserError, match=r"data\.vocabulary: .* has 300 tokens, wanted 310; move it away"):
        open_tokenizer(str(file), 310, [TEXT])


def test_what_transformers_reads_is_the_same(tmp_path):
    from transformers import AutoTokenizer

    known = open_tokenizer(str(tmp_path / "bpe.json"), 300, [TEXT])
    known.save_pretrained(tmp_path / "folder")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "folder")
    assert theirs(TEXT)["input_ids"] == list(known.encode([TEXT])[0])
    assert theirs.eos_token_id == known.end and theirs.decode(theirs(TEXT)["input_ids"]) == TEXT
    back = read_tokenizer(str(tmp_path / "folder"))
    assert (back.end, back.begin, back.vocabulary) == (known.end, (known.end,), 300)


def test_an_export_keeps_what_transformers_knows_of_it(tmp_path):
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    open_tokenizer(str(tmp_path / "bpe.json"), 300, [TEXT])
    options = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": END, "chat_template": "{{ messages }}"}
    PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "bpe.json"), **options).save_pretrained(tmp_path / "a")
    read_tokenizer(str(tmp_path / "a")).save_pretrained(tmp_path / "b")
    first, second = (AutoTokenizer.from_pretrained(tmp_path / name) for name in "ab")
    for name, value in options.items():
        assert getattr(first, name) == getattr(second, name) == value
    assert first.get_vocab() == second.get_vocab()


def test_the_end_tokens_letters_in_a_text_are_letters(tmp_path):
    for known in (ByteTokenizer(), open_tokenizer(str(tmp_path / "bpe.json"), 300, [TEXT])):
        (tokens,) = known.encode([f"a{END}b"])
        assert known.end not in tokens and known.decode(tokens) == f"a{END}b"


def test_a_document_begins_as_the_tokenizer_has_it(tmp_path):
    from tokenizers import Tokenizer as Model
    from tokenizers import models, processors

    model = Model(models.WordLevel({"<s>": 0, "</s>": 1, "a": 2, "?": 3}, unk_token="?"))
    model.add_special_tokens(["<s>", "</s>"])
    model.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    model.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "</s>"}}))
    known = read_tokenizer(str(tmp_path))
    assert (known.begin, known.end, list(known.encode(["a"])[0])) == ((0,), 1, [2])


def test_a_templates_special_tokens_are_tokens_and_a_texts_are_letters(tmp_path):
    from tokenizers import Tokenizer as Model

    open_tokenizer(str(tmp_path / "bpe.json"), 300, [TEXT])
    model = Model.from_file(str(tmp_path / "bpe.json"))
    model.add_special_tokens(["<|user|>", "<|user|>s", "<|assistant|>"])
    model.save(str(tmp_path / "tokenizer.json"))
    known = read_tokenizer(str(tmp_path / "tokenizer.json"))
    row = {"text": "x", "q": "Who<|user|>?"}
    document = Columns(prompt="<|user|>s<|user|>Ask: {q}<|assistant|>").document(row, "")
    first, second, third = known.encode(["Ask: Who", "<|user|>", "?"])
    (tokens,) = known.encode_prompts([document])
    letters = known.encode(["Ask: Who<|user|>?"])[0]
    assert len(letters) >= len(first) + len(third) and len(second) > 1
    assert list(tokens) == [301, 300, *letters, 302]
    plain = Columns(prompt="Ask: {q} ").document(row, "")
    joint = known.encode([plain.prompt.rstrip()])[0]
    assert [list(t) for t in known.encode_prompts([plain, Document("x")])] == [list(joint), []]


@pytest.mark.parametrize("kind", ["bytes", "bpe", "metaspace", "llama"])
def test_a_prompt_and_its_text_are_the_tokens_of_both_together(tmp_path, kind):
    """A prompt that ends in a space had left that a token of its own, and the text's first word another one."""
    from tokenizers import Tokenizer as Model
    from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

    if kind == "bytes":
        known = open_tokenizer("bytes", None, ())
    elif kind == "bpe":
        known = open_tokenizer(str(tmp_path / "bpe.json"), 300, [TEXT])
    else:
        model = Model(models.BPE())
        if kind == "llama":
            space = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
            model.normalizer = normalizers.Sequence(space)
        model.pre_tokenizer, model.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        model.train_from_iterator([TEXT], trainers.BpeTrainer(vocab_size=200, special_tokens=["</s>"]))
        model.save(str(tmp_path / "tokenizer.json"))
        known = read_tokenizer(str(tmp_path / "tokenizer.json"))
    words = TEXT.split()
    row = {"text": words[3], "q": words[1]}
    document = Columns(prompt="the {q} the: ").document(row, "")
    prompts = (prompt,) = known.encode_prompts([document])
    (text,) = known.encode_texts([document], prompts)
    (whole,) = known.encode([document.prompt + document.text])
    assert [*prompt, *text] == list(whole)
    assert known.decode(text).strip() == row["text"] and document.text == row["text"]


@pytest.mark.parametrize("kind", ["llama", "first", "bpe"])
@pytest.mark.parametrize(
    "prompt", ["the {q} the: ", "{q}\n\nof:\n", "<|user|>{q}<|bot|>", "<|user|>\n{q}<|end|>\n<|bot|>\n", "{q}"]
)
def test_a_chats_tokens_are_what_the_tokenizer_makes_of_the_whole(tmp_path, kind, prompt):
    """Its halves by themselves had spaces that are in no text, where a tokenizer puts one before all it is given."""
    from tokenizers import AddedToken, models, normalizers, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Model

    model = Model(models.BPE())
    bytes_ = kind == "bpe"
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True) if bytes_ else pre_tokenizers.Metaspace()
    model.train_from_iterator([TEXT, TEXT + "\n"], trainers.BpeTrainer(vocab_size=200, special_tokens=["</s>"]))
    if kind == "llama":  # what it learned has no spaces in the middle, though nothing divides a text any more
        space = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
        model.normalizer, model.pre_tokenizer = normalizers.Sequence(space), pre_tokenizers.Sequence([])
    elif kind == "first":
        model.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    strip = kind == "llama"  # as Phi-3's, which take the newline after them away
    model.add_special_tokens([AddedToken(x, rstrip=strip) for x in ("<|user|>", "<|bot|>", "<|end|>")])
    model.save(str(tmp_path / "tokenizer.json"))
    known = read_tokenizer(str(tmp_path / "tokenizer.json"))
    words = TEXT.split()
    documents = [Columns(prompt=prompt).document({"text": words[3], "q": q}, "") for q in (words[1], "the <|bot|> of")]
    prompts = known.encode_prompts(documents)
    texts = known.encode_texts(documents, prompts)
    whole = model.encode("".join(documents[0].halves), add_special_tokens=False).ids
    assert [*prompts[0], *texts[0]] == whole
    bots = [sum(token == model.token_to_id("<|bot|>") for token in row) for row in prompts]
    assert bots == [prompt.count("<|bot|>")] * 2  # the letters in a row are none


@pytest.mark.parametrize("row", ["no <|BOT|> yes", "no \uff1c|bot|\uff1e yes", "no <|bot|> yes"])
def test_letters_that_a_tokenizer_makes_a_special_tokens_are_letters(tmp_path, row):
    """Of upper case or full width: no row leaves its template, nor does a text, whose other tokens are the whole's."""
    from tokenizers import AddedToken, models, normalizers, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Model

    model = Model(models.BPE())
    steps = [normalizers.NFKC(), normalizers.Lowercase()]
    model.normalizer, model.pre_tokenizer = (
        normalizers.Sequence(steps),
        pre_tokenizers.Metaspace(prepend_scheme="first"),
    )
    model.train_from_iterator([TEXT + "<|bot|>\n:"], trainers.BpeTrainer(vocab_size=200, special_tokens=["</s>"]))
    model.add_special_tokens([AddedToken("<|bot|>", normalized=True)])
    model.save(str(tmp_path / "tokenizer.json"))
    known = read_tokenizer(str(tmp_path / "tokenizer.json"))
    bot = model.token_to_id("<|bot|>")
    document = Columns(prompt="{q}\n<|bot|>").document({"text": row, "q": row}, "")
    prompts = (prompt,) = known.encode_prompts([document])
    (text,) = known.encode_texts([document], prompts)
    assert list(prompt).count(bot) == 1 and prompt[-1] == bot and bot not in text
    assert model.id_to_token(int(text[0]))[0] == "n"  # no space of its own before it


def test_a_number_is_one_more_than_the_largest_where_some_stand_for_nothing(tmp_path):
    from tokenizers import Tokenizer as Model
    from tokenizers import models

    Model(models.WordLevel({"</s>": 0, "a": 7}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    assert read_tokenizer(str(tmp_path / "tokenizer.json")).vocabulary == 8


def test_tokenizers_agree_if_all_tokens_of_both_have_one_number(tmp_path):
    known = open_tokenizer(str(tmp_path / "bpe.json"), 300, [TEXT])
    known.save_pretrained(tmp_path / "folder")
    same = vocabulary_beside(tmp_path / "folder")
    assert len(same) == 300 and not known.conflict(same)
    assert not known.conflict({**same, "<new>": 300}) and not known.conflict({}) and not vocabulary_beside(tmp_path)
    open_tokenizer(str(tmp_path / "b.json"), 300, [TEXT.upper()]).save_pretrained(tmp_path / "other")
    assert "in the data's" in known.conflict(vocabulary_beside(tmp_path / "other"))
    assert "in the data's" in ByteTokenizer().conflict(same)


@pytest.mark.parametrize(
    ("name", "vocabulary", "message"),
    [
        ("bytes", 300, r"data\.vocabulary: bytes have 257 tokens"),
        ("{folder}/none.json", None, r"data\.tokenizer: wanted .* found nothing"),
        ("{folder}/bpe.json", 256, r"data\.vocabulary: wanted 257 or more"),
        ("{folder}/bpe.json", 5000, r"data\.vocabulary: the text gives \d+ tokens, wanted 5000"),
        ("{folder}", None, r"wanted a tokenizer\.json, found none"),
        ("{folder}/broken.json", None, r"not a tokenizer of the tokenizers package"),
        ("{folder}/endless.json", None, r"nothing tells its end token"),
    ],
)
def test_what_is_no_tokenizer_is_refused_in_a_line(tmp_path, name, vocabulary, message):
    from tokenizers import Tokenizer as Model
    from tokenizers import models

    (tmp_path / "broken.json").write_text("{}")
    Model(models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "endless.json"))
    with pytest.raises(UserError, match=message) as error:
        open_tokenizer(name.format(folder=tmp_path), vocabulary, [TEXT])
    assert "\n" not in str(error.value)
    assert not (tmp_path / "bpe.json").exists()
