"""Tokenizers: bytes, a BPE trained on the run's own text, or one that is read from a file, a folder or the hub."""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from dit_shd.core.errors import UserError, error_line
from dit_shd.core.files import atomic_file
from dit_shd.core.json_files import read_object
from dit_shd.core.places import HubName, expanded, find
from dit_shd.core.run_files import STUDENT
from dit_shd.data.document_rows import Document
from dit_shd.data.token_windows import encoded, pieces

if TYPE_CHECKING:
    import tokenizers

_log = logging.getLogger("dit_shd")
BYTES = "bytes"
END = "<|endoftext|>"
ENDS = (END, "</s>", "<eos>", "<|end_of_text|>", "[SEP]")
"""What a text ends with, where a tokenizer's folder does not tell."""
FILE, CONFIG, CHAT = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
NAMES = {"bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token", "chat_template"}
"""Of a tokenizer's config, what its export keeps."""


class Tokenizer:
    """Text to tokens.

    A document begins as the tokenizer has it (by its end token where it has nothing) and ends with its end token, so
    that each of its own tokens has one before it that predicts it.

    Args:
        tokenizer: One of the tokenizers package.
        end: The text of its end token.
        names: What else transformers knows of it and an export keeps: bos_token, pad_token, chat_template, ...
    """

    def __init__(self, tokenizer: "tokenizers.Tokenizer", end: str, names: Mapping[str, str] = MappingProxyType({})):
        self._tokenizer, self._end, self._names = tokenizer, end, names
        known = tokenizer.token_to_id(end)
        if known is None:
            raise UserError(f"data.tokenizer: its end token '{end}' is none of its tokens")
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.end: int = known
        added = [i for i in tokenizer.encode("").ids if i != known]
        self.begin: tuple[int, ...] = tuple(added) or (known,)
        tokenizer.encode_special_tokens = True  # a text in which the end token's letters stand does not end there
        added = tokenizer.get_added_tokens_decoder()
        self._special = {token.content: number for number, token in added.items() if token.special and token.content}
        self._letters = re.compile("|".join(map(re.escape, sorted(self._special, key=len, reverse=True))))

    @property
    def vocabulary(self) -> int:
        """How many numbers tokens have: one more than the largest, of which some may stand for nothing."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The tokens of each text, as int32, without begin and end."""
        return encoded(self._tokenizer, texts)

    def encode_prompts(self, documents: Sequence[Document]) -> list[np.ndarray]:
        """The tokens of each document's prompt: special ones where its template has their letters, not where a row has.

        So a template may be that of a chat (<|user|>{question}<|assistant|>), and no text can break out of it. Spaces
        at its end are the text's.
        """
        whole = self._as_it_stands(documents, [d.halves[0] if d.prompt else None for d in documents])
        return [self._by_pieces(d) if tokens is None else tokens for d, tokens in zip(documents, whole)]

    def encode_texts(self, documents: Sequence[Document], prompts: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The tokens of each document's text, spaces before it included: with its prompt's those of both together.

        Args:
            documents: The documents.
            prompts: The tokens of their prompts. A text that these are not the beginning of is encoded by itself.
        """
        together = self._as_it_stands(documents, ["".join(d.halves) if d.prompt else None for d in documents])
        rows, alone = list[np.ndarray](), iter(self.encode([d.halves[1] for d in documents if not d.prompt]))
        for document, prompt, both in zip(documents, prompts, together):
            if not document.prompt:
                rows.append(next(alone))
            elif both is not None and np.array_equal(both[: len(prompt)], prompt):
                rows.append(both[len(prompt) :])
            else:
                rows.append(self._behind(document.halves[1]))
        return rows

    def _as_it_stands(self, documents: Sequence[Document], texts: Sequence[str | None]) -> list[np.ndarray | None]:
        """The tokenizer's own tokens of texts of some documents; None where a row has a special token's letters."""
        known = [(i, x, self._of_template(d, x)) for i, (d, x) in enumerate(zip(documents, texts)) if x is not None]
        wanted = [(i, x, special) for i, x, special in known if special is not None]
        self._tokenizer.encode_special_tokens = False
        try:
            encoded = self.encode([x for _, x, _ in wanted])
        finally:
            self._tokenizer.encode_special_tokens = True
        numbers = [*self._special.values()]
        tokens = {  # other letters may become a special token's where a tokenizer makes them alike (NFKC, lower case)
            i: row
            for (i, _, special), row in zip(wanted, encoded)
            if np.array_equal(row[np.isin(row, numbers)], special)
        }
        return [tokens.get(i) for i in range(len(texts))]

    def _of_template(self, document: Document, text: str) -> list[int] | None:
        """The special tokens in a text that begins with a document's prompt; None if one is not of its template."""
        matches = [*self._letters.finditer(text)] if self._special else []
        if not all(any(a <= m.start() and m.end() <= b for a, b in document.template) for m in matches):
            return None
        return [self._special[match[0]] for match in matches]

    def _behind(self, text: str) -> np.ndarray:
        """The tokens of a text that stands behind another one: without what begins a text alone."""
        for before in ("\n", ":"):
            first, both = self.encode([before, before + text])
            if np.array_equal(both[: len(first)], first):
                return both[len(first) :]
        return self.encode([text])[0]

    def _by_pieces(self, document: Document) -> np.ndarray:
        """The tokens of a prompt, its texts and special tokens one after the other."""
        prompt, _ = document.halves
        parts, at, piece = [np.zeros(0, np.int32)], 0, lambda text: self.encode([text])[0]
        if not prompt:
            return parts[0]
        for begin, end in document.template if self._special else ():
            for match in self._letters.finditer(prompt, begin, end):
                parts += [piece(prompt[at : match.start()]), np.array([self._special[match[0]]], np.int32)]
                at, piece = match.end(), self._behind
        return np.concatenate([*parts, piece(prompt[at:])])

    def conflict(self, vocabulary: Mapping[str, int]) -> str:
        """A token that another tokenizer's vocabulary has by another number; empty if those in both are the same."""
        others = {number: token for token, number in vocabulary.items()}
        for token, number in sorted(
            self._tokenizer.get_vocab(with_added_tokens=True).items(), key=lambda each: each[1]
        ):
            other = others.get(number, token)
            if other != token or vocabulary.get(token, number) != number:
                return f"token {number} is {other!r}, and {token!r} in the data's"
        return ""

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of some tokens; special ones leave none."""
        return self._tokenizer.decode([int(token) for token in tokens])

    def text(self, token: int) -> str:
        """What one token stands for, special ones and parts of letters too."""
        shown = self._tokenizer.decode([token])
        return shown if shown else self._tokenizer.id_to_token(token) or str(token)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write it as transformers reads it (AutoTokenizer)."""
        from transformers import PreTrainedTokenizerFast

        options = {**self._names, "eos_token": self._end}
        PreTrainedTokenizerFast(tokenizer_object=self._tokenizer, **options).save_pretrained(str(folder))


class ByteTokenizer(Tokenizer):
    """256 bytes, each its own number, and the end of a text."""

    def __init__(self) -> None:
        super().__init__(_byte_model(), END)

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The same tokens as the tokenizer's, which takes a hundred times as long."""
        return [np.frombuffer(text.encode(), np.uint8).astype(np.int32) for text in texts]

    def _as_it_stands(self, documents: Sequence[Document], texts: Sequence[str | None]) -> list[np.ndarray | None]:
        return [None] * len(texts)  # bytes of pieces are the bytes of the whole


def _byte_model() -> "tokenizers.Tokenizer":
    from tokenizers import Tokenizer as Model
    from tokenizers import decoders, models, pre_tokenizers

    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in printable}
    others = [byte for byte in range(256) if byte not in letters]
    letters |= {byte: chr(256 + i) for i, byte in enumerate(others)}  # as GPT-2's tokenizer writes bytes
    model = Model(models.BPE(vocab={letter: byte for byte, letter in letters.items()}, merges=[]))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    model.add_special_tokens([END])
    return model


def trained_bpe(texts: Iterable[str], vocabulary: int, file: Path) -> Tokenizer:
    """A byte-level BPE of some size, trained on texts and written to a file; the same texts give the same file.

    Raises:
        UserError: A vocabulary without room for all bytes, or more than the texts give.
    """
    from tokenizers import Tokenizer as Model
    from tokenizers import decoders, models, pre_tokenizers, trainers

    if vocabulary < 257:
        raise UserError(f"data.vocabulary: wanted 257 or more (256 bytes and the end of a text), found {vocabulary}")
    model = Model(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    model.train_from_iterator((piece for text in texts for piece in pieces(text)), trainer)
    if model.get_vocab_size() < vocabulary:
        raise UserError(f"data.vocabulary: the text gives {model.get_vocab_size()} tokens, wanted {vocabulary}")
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(file) as part:
        part.write(model.to_str(pretty=True).encode())
    return Tokenizer(model, END)


def read_tokenizer(source: str) -> Tokenizer:
    """A tokenizer from its file (tokenizer.json), a folder of transformers, or hub:OWNER/NAME.

    Raises:
        UserError: There is none, or it cannot be read.
    """
    place = find(source, "model", "data.tokenizer")
    if not isinstance(place, (HubName, Path)):
        raise UserError(f"data.tokenizer: {source}: no tokenizer ships with dit_shd")
    file, config = _files(place)
    if file is None or not file.is_file():
        where = source if file is None else file.parent
        raise UserError(f"data.tokenizer: {where}: wanted a {FILE}, found none (sentencepiece files are not read)")
    return _of_file(file, config)


def has_tokenizer(source: str) -> bool:
    """Whether a model, a folder, a run or hub:OWNER/NAME, has a tokenizer that can be read."""
    place = find(source, "model", "data.tokenizer")
    file = _files(place)[0] if isinstance(place, (HubName, Path)) else None
    return file is not None and file.name == FILE and file.is_file()


def _files(place: Path | HubName) -> tuple[Path | None, Path | None]:
    """Where a tokenizer is, and what tells its end."""
    if isinstance(place, HubName):
        return place.file(FILE), place.file(CONFIG)
    if not place.is_dir():
        return place, place.with_name(CONFIG)
    folder = next((x for x in (place / STUDENT, place) if (x / FILE).is_file()), place)
    return folder / FILE, folder / CONFIG


def vocabulary_beside(folder: Path) -> dict[str, int]:
    """Text -> number of the tokens of a model's tokenizer.json; empty where its folder has none that can be read."""
    from tokenizers import Tokenizer as Model

    try:
        return Model.from_file(str(folder / FILE)).get_vocab(with_added_tokens=True)
    except Exception:  # none, or of a version that the package does not know: nothing is known then
        return {}


def _of_file(file: Path, config: Path | None) -> Tokenizer:
    from tokenizers import Tokenizer as Model

    try:
        model = Model.from_file(str(file))
    except Exception as error:  # the package raises Exception itself
        raise UserError(
            f"data.tokenizer: {file}: not a tokenizer of the tokenizers package ({error_line(error)})"
        ) from error
    names = {} if config is None else _names(config)
    end = names.get("eos_token")
    known = [end] if end is not None else [token for token in ENDS if model.token_to_id(token) is not None]
    if not known:
        raise UserError(
            f"data.tokenizer: {file}: nothing tells its end token; wanted {CONFIG} beside it, with eos_token"
        )
    return Tokenizer(model, known[0], names)


def _names(config: Path) -> dict[str, str]:
    """The special tokens that a tokenizer_config.json names, and its template of chats or that beside it."""
    options: dict[str, Any] = (read_object(config) or {}) if config.is_file() else {}
    tokens = {name: value.get("content") if isinstance(value, dict) else value for name, value in options.items()}
    names = {name: value for name, value in tokens.items() if name in NAMES and isinstance(value, str)}
    beside = config.with_name(CHAT)
    return {"chat_template": beside.read_text("utf-8"), **names} if beside.is_file() else names


def open_tokenizer(name: str, vocabulary: int | None, texts: Iterable[str]) -> Tokenizer:
    """The tokenizer that a config names: `bytes`, one that is there, or one to be trained and kept.

    Args:
        name: `bytes`, a file, a folder or hub:OWNER/NAME; with `vocabulary` a BPE file, trained if it is not there.
        vocabulary: Tokens of the BPE; None: nothing is trained.
        texts: What it is trained on, read only then.

    Raises:
        UserError: There is none, or another number of tokens than the config says.
    """
    if name == BYTES:
        if vocabulary is not None:
            raise UserError(
                "data.vocabulary: bytes have 257 tokens; name a file to train a BPE: tokenizer=data/bpe.json"
            )
        return ByteTokenizer()
    file = Path(expanded(name))
    if vocabulary is not None and not name.startswith("hub:") and not file.exists():
        return trained_bpe(texts, vocabulary, file)
    tokenizer = read_tokenizer(name)
    if vocabulary not in (None, tokenizer.vocabulary):
        raise UserError(f"data.vocabulary: {name} has {tokenizer.vocabulary} tokens, wanted {vocabulary}; move it away")
    if vocabulary is not None and not name.startswith("hub:"):
        _log.info("data.tokenizer: %s was there and is used as it is, whatever text it was trained on", name)
    return tokenizer
