"""Sequences of one length out of documents of many: packed one after the other, or one document each.

A sequence holds length + 1 tokens: `length` that a model is given, each followed by the one it is to predict. Packed
sequences overlap by that one token, so every token of the text is predicted once.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PADDING = -1
"""The document of tokens that are none."""


@dataclass(frozen=True, eq=False)
class Sequences:
    """Documents as one row of tokens, and where sequences are cut out of it.

    Args:
        tokens: The tokens of all documents, one after the other [t].
        starts: Where each document begins in it [documents], from 0.
        prompts: Tokens at the beginning of each document that are not to be learned (its begin among them if > 0).
        length: Tokens of a sequence, n.
        pack: Documents after one another; else a sequence is one document, cut where it is too long.
    """

    tokens: np.ndarray
    starts: np.ndarray
    prompts: np.ndarray
    length: int
    pack: bool

    @classmethod
    def of(cls, documents: Sequence[np.ndarray], prompts: Sequence[int], length: int, pack: bool) -> "Sequences":
        """The sequences of documents, each given by its tokens, with begin and end."""
        sizes = np.array([len(document) for document in documents])
        starts = np.concatenate([[0], sizes.cumsum()[:-1]])
        return cls(np.concatenate(documents), starts, np.array(prompts), length, pack)

    def __len__(self) -> int:
        return max(1, -(-(len(self.tokens) - 1) // self.length)) if self.pack else len(self.starts)

    @property
    def cut(self) -> int:
        """Tokens that no sequence holds, since their documents are too long."""
        if self.pack:
            return 0
        sizes = np.diff([*self.starts, len(self.tokens)])
        return int((sizes - self.length - 1).clip(min=0).sum())

    @property
    def empty(self) -> int:
        """Sequences without anything to be learned, since their prompts fill them."""
        return 0 if self.pack else int((self.prompts > self.length).sum())

    def take(self, indices: np.ndarray, padding: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sequences [b,n+1]: tokens, the number of each token's document in its sequence, and whether it is prompt.

        Args:
            indices: Which [b].
            padding: The token that fills up a short sequence; its document is PADDING.
        """
        wide = self.length + 1
        if self.pack:
            firsts, lasts = indices * self.length, np.full(len(indices), len(self.tokens))
        else:
            after = np.minimum(indices + 1, len(self.starts) - 1)
            firsts = self.starts[indices]
            lasts = np.where(indices + 1 < len(self.starts), self.starts[after], len(self.tokens))
        at = firsts[:, None] + np.arange(wide)
        real = at < lasts[:, None]
        at = np.where(real, at, 0)
        document = np.searchsorted(self.starts, at, side="right") - 1
        prompt = real & (at - self.starts[document] < self.prompts[document])
        tokens = np.where(real, self.tokens[at], padding).astype(np.int64)
        return tokens, np.where(real, document - document[:, :1], PADDING), prompt


def positions(documents: np.ndarray) -> np.ndarray:
    """Each token's place in its document, as far as that is in the sequence [b,n], of documents' numbers [b,n].

    Padding counts on from the last document, so a sequence of one document is one run of places.
    """
    documents = np.maximum.accumulate(documents, axis=1)
    n = documents.shape[1]
    new = np.ones_like(documents, bool)
    new[:, 1:] = documents[:, 1:] != documents[:, :-1]
    at = np.arange(n)
    return at - np.maximum.accumulate(np.where(new, at, 0), axis=1)
