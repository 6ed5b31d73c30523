"""Long texts are encoded in windows: the tokens of the whole, in bounded memory."""

import random

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from dit_shd.data import token_windows
from dit_shd.data.token_windows import encoded, pieces

WORDS = ["the", "of", "Bär", "naïve", "語彙", "x", "distil", "attention", "heads", "'s", "🙂🙂", "3.14", "1024", "é"]
SPACES = [" ", " ", " ", "  ", "\n", "\n\n", "\t", " \n ", ". ", ", "]
DIGITS = Regex(r"\p{N}{1,3}|\s*[\r\n]+|\s+(?!\S)|\s+| ?[^\s\p{N}]+")
FEW = 4 * 920
"""Letters of four windows and their overlaps, which end where no spaces are."""
KINDS = ("bytes", "digits by three", "first", "llama", "unigram", "wordpiece", "decomposed")


def text_of(seed, words):
    draw = random.Random(seed)
    return "".join(draw.choice(WORDS) + draw.choice(SPACES) for _ in range(words))


def tokenizer_of(kind):
    model, options = models.BPE(), {"special_tokens": ["</s>"], "show_progress": False}
    if kind == "unigram":
        model, trainer = models.Unigram(), trainers.UnigramTrainer(vocab_size=150, unk_token="<unk>", **options)
    elif kind == "wordpiece":
        model = models.WordPiece(unk_token="[UNK]")
        trainer = trainers.WordPieceTrainer(
            vocab_size=150, special_tokens=["[UNK]"], limit_alphabet=30, show_progress=False
        )
    else:
        trainer = trainers.BpeTrainer(vocab_size=330, **options)
    made = Tokenizer(model)
    if kind == "bytes":
        made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    elif kind == "digits by three":
        by_rule = pre_tokenizers.Split(DIGITS, "isolated")
        made.pre_tokenizer = pre_tokenizers.Sequence(
            [by_rule, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
    elif kind in ("first", "unigram"):
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    elif kind == "llama":  # no word ends but where merges do
        made.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    elif kind == "wordpiece":
        made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    else:  # letters become several, and others none
        made.normalizer = normalizers.Sequence([normalizers.NFKD(), normalizers.StripAccents()])
        made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.train_from_iterator(text_of(9, 3000).split("\n"), trainer)
    return made


@pytest.fixture
def small(monkeypatch):
    """Windows of 500 letters."""
    for name, value in (("WINDOW", 500), ("AT_ONCE", 2000), ("OVERLAP", 200)):
        monkeypatch.setattr(token_windows, name, value)


class Watched:
    """A tokenizer that notes how many letters it is given."""

    def __init__(self, tokenizer):
        self.tokenizer, self.calls = tokenizer, []

    def encode_batch(self, texts, **options):
        self.calls.append(sum(map(len, texts)))
        return self.tokenizer.encode_batch(texts, **options)


def whole(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kind", KINDS)
def test_a_long_texts_tokens_are_those_of_the_whole(kind):
    tokenizer = tokenizer_of(kind)
    for seed in range(4):
        text = text_of(seed, 1500 + seed)
        watched = Watched(tokenizer)
        (tokens,) = encoded(watched, [text])
        assert tokens.dtype == np.int32 and tokens.tolist() == whole(tokenizer, text)
        assert max(watched.calls) <= FEW < len(text) / 2 or kind == "llama"  # windows met at every seam


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("run", ["1", "1024", "ab", " ", "\n", "語", "e\u0301"])
def test_what_runs_through_an_overlap_is_the_wholes_too(kind, run):
    """Digits by threes, and words of merges, begin anew in each window: the seam is refused or right."""
    tokenizer = tokenizer_of(kind)
    for count in (301, 900, 1501):
        text = text_of(1, 60) + run * count + text_of(2, 60)
        assert encoded(tokenizer, [text])[0].tolist() == whole(tokenizer, text)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kind", ["bytes", "digits by three", "first", "llama"])
def test_a_text_of_one_line_again_and_again_is_encoded_in_windows(kind):
    """Its tokens are the same in many places; where they stand tells them apart."""
    tokenizer, line = tokenizer_of(kind), "the naïve 3.14 of heads, distil"
    for end in ("\n", " ") if kind in ("bytes", "digits by three") else (" ",):  # others have no token for an end
        watched = Watched(tokenizer)
        assert encoded(watched, [(line + end) * 200])[0].tolist() == whole(tokenizer, (line + end) * 200)
        assert max(watched.calls) <= FEW


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("before", ["", "§", "§ ", "§§x"])
@pytest.mark.parametrize("words", [True, False])
def test_letters_without_a_token_move_no_seam(before, words):
    """The package counts none for them, so that what follows in the same word, or text, seems to stand before."""
    tokenizer = Tokenizer(models.BPE())
    if words:
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.train_from_iterator(["1 2 3 a b", "ab ab"], trainers.BpeTrainer(vocab_size=9, show_progress=False))
    for count in (699, 1001, 1502):
        text = "ab " * 30 + before + "1" * count + " ab" * 200 + before + "12" * count
        assert encoded(tokenizer, [text])[0].tolist() == whole(tokenizer, text)


@pytest.mark.usefixtures("small")
def test_texts_short_and_long_come_back_in_order_and_few_at_once():
    tokenizer = tokenizer_of("bytes")
    texts = [text_of(seed, words) for seed, words in enumerate([5, 0, 400, 3, 20, 20, 20, 20, 900, 0, 1, 60, 30, 50])]
    watched = Watched(tokenizer)
    assert [row.tolist() for row in encoded(watched, texts)] == [whole(tokenizer, text) for text in texts]
    assert max(watched.calls) <= FEW and len(watched.calls) < len(texts)
    assert encoded(tokenizer, []) == []


def test_many_short_texts_are_not_encoded_at_once(monkeypatch):
    monkeypatch.setattr(token_windows, "TEXTS", 10)
    tokenizer = tokenizer_of("bytes")
    watched = Watched(tokenizer)
    assert [row.tolist() for row in encoded(watched, ["the", ""] * 13)] == [whole(tokenizer, "the"), []] * 13
    assert watched.calls == [15, 15, 9]


@pytest.mark.usefixtures("small")
def test_pieces_are_the_text():
    text = text_of(3, 300)
    assert "".join(pieces(text)) == text and max(map(len, pieces(text))) == 500
    assert list(pieces("")) == [""]


@pytest.mark.usefixtures("small")
def test_progress_ends_at_the_texts_end_whatever_windows_it_took(monkeypatch):
    bars = []

    class Bar(token_windows.tqdm):
        def __init__(self, **options):
            super().__init__(**options)
            self.seen = []
            bars.append(self)

        def update(self, n=1):
            self.seen.append(n)

    monkeypatch.setattr(token_windows, "tqdm", Bar)
    text = text_of(1, 900)
    encoded(tokenizer_of("bytes"), [text, "", text[:40]])
    assert sum(bars[0].seen) == bars[0].total == len(text) + 40 and len(bars[0].seen) > 3
    run = text + " " + "1024" * 400 + text
    encoded(tokenizer_of("digits by three"), [run])  # not in step by a window's beginning
    assert sum(bars[1].seen) == bars[1].total == len(run) and min(bars[1].seen) < 0  # it was begun again
