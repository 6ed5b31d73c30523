"""Text as token sequences of one length, for causal language models."""

import copy
import logging
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NoReturn, Self

import numpy as np
import torch
from torch import Tensor

from dit_shd.core.errors import UserError
from dit_shd.core.installation import require
from dit_shd.core.places import Place, expanded
from dit_shd.core.progress import progress_bar
from dit_shd.core.rng import Draws, stream
from dit_shd.data.datasets import Dataset
from dit_shd.data.document_rows import Columns, Document
from dit_shd.data.documents import Unit, read_documents
from dit_shd.data.packing import Sequences
from dit_shd.data.tokenizer import BYTES, Tokenizer, open_tokenizer

Split = Literal["train", "validation", "test", "all"]
PARTS = ("train", "validation", "test")
"""In the order of `counts`."""
AT_ONCE = 4096
"""Documents whose tokens are made together."""

_log = logging.getLogger("dit_shd")


class Text(Dataset):
    """Documents of text files, JSON lines, Parquet files or a Hugging Face dataset, as sequences of tokens.

    Args:
        path: A file, a folder of files (.txt, .jsonl, .parquet, BabyLM's .train), a saved dataset, or hub:OWNER/NAME.
        tokenizer: `bytes`; a file (tokenizer.json), a folder of transformers or hub:OWNER/NAME; or, with vocabulary,
            the file of a BPE that is trained on the training split if it is not there yet.
        vocabulary: Tokens of the BPE to train; empty: nothing is trained.
        length: Tokens that a model is given of a sequence, n.
        document: What is one document of a text file: file, paragraph (up to an empty line) or line.
        split: `train`, `validation` (the share that is held out), `test` (of counts) or `all`.
        held_out: Share for validation.
        by: `document`, whole documents evenly spread, or `position`, the end of each document (without prompts).
        counts: Documents of train, validation and test instead, drawn once for all seeds: [12500, 1000, 500].
        pack: Documents one after the other in a sequence; else each has its own, cut at `length` and padded.
        column: Of the text in tables.
        prompt: What comes before it and is not learned, with columns in braces.
        hub_split: Of a dataset that has several, or of a folder whose files are named so (train-00000.parquet, or
            corpus_test.jsonl beside corpus.jsonl, which is then of train); in a folder `all` is every file.
        hub_file: A file of its repository that is read alone.
    """

    fields = frozenset({"tokens"})
    classes = 0

    def __init__(
        self,
        path: Place,
        tokenizer: Place = BYTES,
        vocabulary: int | None = None,
        length: int = 128,
        document: Unit = "file",
        split: Split = "train",
        held_out: float = 0.1,
        by: Literal["document", "position"] = "document",
        pack: bool = True,
        column: str = "text",
        prompt: str | None = None,
        hub_split: str = "train",
        counts: list[int] | None = None,
        hub_file: str | None = None,
    ):
        require(("transformers", "tokenizers"), "language", "data text")
        if length < 2:
            raise UserError(f"data.length: wanted 2 tokens or more, found {length}")
        if not 0 <= held_out < 1:
            raise UserError(f"data.held_out: wanted a share from 0 and below 1, found {held_out}")
        self.length, self.pack, self._held_out, self._by = length, pack, held_out, by
        self._documents = read_documents(str(path), document, Columns(column, prompt), hub_split, hub_file)
        if by == "position" and any(document.prompt for document in self._documents):
            raise UserError(
                "data.by: position would cut answers in two and teach where the cut is; wanted document for texts that "
                "follow prompts"
            )
        self._counts = None if counts is None else _checked(counts, len(self._documents))
        self.tokenizer: Tokenizer = open_tokenizer(
            str(tokenizer), vocabulary, (d.prompt + d.text for d in self._part("train"))
        )
        self._take(split)
        if split == "train" and held_out and self._counts is None and not self._divided()[0]:
            _log.warning(
                "data: nothing is held out of %d documents; %s holds some out", len(self._documents), self._remedy
            )

    @property
    def _remedy(self) -> str:
        """What gives an empty split documents."""
        if not self._held_out:
            return "data.held_out above 0, or none of what needs it: validate_every=0"
        more = "a larger data.held_out"
        return f"{more}, by=position, or of text document=line or paragraph" if self._by == "document" else more

    def _take(self, split: Split) -> None:
        """Become the sequences of a split."""
        documents = self._part(split)
        known = self.tokenizer
        begin = len(known.begin)  # one begin token is predicted by nothing; of several (GLM) the others are no text
        rows, masked = list[np.ndarray](), list[int]()
        with progress_bar(len(documents), "document", f"tokens of {split}", delay=2) as bar:
            for part in (documents[i : i + AT_ONCE] for i in range(0, len(documents), AT_ONCE)):
                prompts = known.encode_prompts(part)
                for p, t in zip(prompts, known.encode_texts(part, prompts)):
                    rows.append(np.concatenate([known.begin, p, t, [known.end]], dtype=np.int32, casting="unsafe"))
                    masked.append(begin + len(p) if len(p) or begin > 1 else 0)
                bar.update(len(part))
        self._sequences = Sequences.of(rows, masked, self.length, self.pack)
        self.text_bytes = sum(len(d.halves[1].encode()) for d in documents)
        """Of the texts, prompts apart, with the spaces that begin them."""
        self.split: Split = split

    @property
    def documents(self) -> list[Document]:
        """The documents of the split, as they were read."""
        return self._part(self.split)

    def _part(self, split: Split) -> list[Document]:
        """The documents of a split.

        Raises:
            UserError: It has none.
        """
        if split == "all":
            return self._documents
        if self._counts is not None:
            at = PARTS.index(split)
            drawn = stream(0, "counts").permutation(len(self._documents))[sum(self._counts[:at]) :][: self._counts[at]]
            return [self._documents[i] for i in drawn]
        if split == "test":
            raise UserError("data.split: test is a part of counts, as [12500, 1000, 500]; found none")
        held, kept = self._divided()
        part = kept if split == "train" else held
        if not part:
            raise UserError(
                f"data.split: {split} is empty: {len(self._documents)} documents, {self._held_out:g} held out by "
                f"{self._by}; {self._remedy}"
            )
        return part

    def _divided(self) -> tuple[list[Document], list[Document]]:
        """What is held out, and what is not."""
        share, documents = self._held_out, self._documents
        if self._by == "document":  # evenly spread: the i-th, where i times the share passes a whole number
            counts = np.floor(np.arange(len(documents) + 1) * share + 1e-9)
            held = np.diff(counts) > 0
            return [d for d, h in zip(documents, held) if h], [d for d, h in zip(documents, held) if not h]
        cuts = [round(len(d.text) * (1 - share)) for d in documents]
        ends = [replace(d, text=d.text[cut:], others=()) for d, cut in zip(documents, cuts)]
        begins = [replace(d, text=d.text[:cut], others=()) for d, cut in zip(documents, cuts)]
        return [d for d in ends if d.text.strip()], [d for d in begins if d.text.strip()]

    @cached_property
    def held_out(self) -> Self:
        """The validation split, by the same tokenizer."""
        other = copy.copy(self)
        other._take("validation")
        return other

    @property
    def sizes(self) -> dict[str, int]:
        """What a model has to know of the data."""
        return {"vocab_size": self.tokenizer.vocabulary}

    @classmethod
    def sizes_of(cls, **options: Any) -> dict[str, int]:
        """Those of the tokenizer: the text is not read for them, and none is trained."""
        tokenizer, vocabulary = str(options["tokenizer"]), options["vocabulary"]
        if isinstance(vocabulary, int):
            return {"vocab_size": vocabulary}
        here = tokenizer == BYTES or Path(expanded(tokenizer)).exists()
        return {"vocab_size": open_tokenizer(tokenizer, None, ()).vocabulary} if here else {}

    @property
    def cut_tokens(self) -> int:
        """Tokens of documents that are too long for a sequence of their own."""
        return self._sequences.cut

    @property
    def empty_sequences(self) -> int:
        """Sequences whose prompt fills them, so that nothing in them is to be learned."""
        return self._sequences.empty

    @property
    def shape(self) -> tuple[int, ...]:  # type: ignore[override]
        """The shape of a sequence."""
        return (self.length,)

    @classmethod
    def described(cls, **options: Any) -> str:
        place = str(options.get("path"))
        return f"text {place if place.startswith('hub:') else Path(place).name}"

    def __len__(self) -> int:
        return len(self._sequences)

    def batch(self, indices: np.ndarray, draws: Draws) -> dict[str, Tensor]:
        """The sequences of some indices: a pure function of them.

        Returns:
            Tokens [b,n+1]; documents [b,n+1]: the number of each token's document in its sequence, -1 for padding;
            prompt [b,n+1]: whether it stands before what is to be learned.
        """
        tokens, documents, prompt = self._sequences.take(indices, self.tokenizer.end)
        arrays = {"tokens": tokens, "documents": documents, "prompt": prompt}
        return {name: torch.from_numpy(array) for name, array in arrays.items()}

    def token_counts(self) -> np.ndarray:
        """How often each token occurs [vocabulary]."""
        return np.bincount(self._sequences.tokens, minlength=self.tokenizer.vocabulary)

    def images(self) -> NoReturn:
        raise UserError("data text: holds text, not images")

    def labels(self) -> NoReturn:
        raise UserError("data text: holds text, and text has no labels")


def _checked(counts: list[int], documents: int) -> list[int]:
    """Counts of documents that there are.

    Raises:
        UserError: Other than three whole numbers above 0, or more documents than there are.
    """
    if len(counts) != len(PARTS) or min(counts) < 1:
        raise UserError(f"data.counts: wanted documents of {', '.join(PARTS)}, 1 or more of each, found {counts}")
    if sum(counts) > documents:
        raise UserError(f"data.counts: wanted at most the {documents} documents that there are, found {sum(counts)}")
    return counts
