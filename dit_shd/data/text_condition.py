"""What text encoders make of prompts: all that a text-to-image transformer is given of them."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True, eq=False)
class TextCondition:
    """Embeddings of prompts, padded to one length."""

    embeddings: Tensor
    """[b,m,e]"""
    mask: Tensor
    """Which tokens are a prompt's, bool [b,m]; all of them where the model takes padding for text."""
    pooled: Tensor | None = None
    """One vector for each prompt [b,p], of models that are given one."""

    @classmethod
    def of(cls, embeddings: Tensor, mask: Tensor | None = None, pooled: Tensor | None = None) -> "TextCondition":
        """The condition of embeddings [b,m,e] whose mask [b,m] may be of any type, or None for all tokens."""
        whole = torch.ones(embeddings.shape[:2], dtype=torch.bool, device=embeddings.device)
        return cls(embeddings, whole if mask is None else mask.bool(), pooled)

    @property
    def tokens(self) -> int:
        """m, with padding."""
        return self.mask.shape[1]

    def to(self, like: Tensor) -> "TextCondition":
        """On the device of a tensor, embeddings in its precision."""
        pooled = None if self.pooled is None else self.pooled.to(like)
        return TextCondition(self.embeddings.to(like), self.mask.to(like.device), pooled)

    def __getitem__(self, chosen: Tensor) -> "TextCondition":
        """Those of some prompts, by a mask [b] or indices."""
        pooled = None if self.pooled is None else self.pooled[chosen]
        return TextCondition(self.embeddings[chosen], self.mask[chosen], pooled)

    def rolled(self) -> "TextCondition":
        """Each prompt's in the place of the one before it."""
        return self[torch.arange(len(self.mask), device=self.mask.device).roll(1)]

    def padded(self, tokens: int) -> "TextCondition":
        """With masked zeros behind the embeddings, up to a number of tokens."""
        more = tokens - self.tokens
        return TextCondition(pad(self.embeddings, (0, 0, 0, more)), pad(self.mask, (0, more)), self.pooled)

    def zeros(self, count: int) -> "TextCondition":
        """Masked zeros in the place of embeddings, for some prompts."""
        pooled = None if self.pooled is None else self.pooled.new_zeros(count, *self.pooled.shape[1:])
        embeddings = self.embeddings.new_zeros(count, *self.embeddings.shape[1:])
        return TextCondition(embeddings, self.mask.new_zeros(count, self.tokens), pooled)

    def put(self, first: int, other: "TextCondition") -> None:
        """Overwrite the prompts from a number on, whose rest is zeros, by others of at most as many tokens."""
        rows = slice(first, first + len(other.mask))
        self.embeddings[rows, : other.tokens] = other.embeddings
        self.mask[rows, : other.tokens] = other.mask
        if self.pooled is not None and other.pooled is not None:
            self.pooled[rows] = other.pooled

    def replaced(self, rows: Tensor, other: "TextCondition") -> "TextCondition":
        """With another condition [1,...] in some rows.

        Args:
            rows: Which, bool [b].
            other: Of one prompt.
        """
        tokens = max(self.tokens, other.tokens)
        before, new = self.padded(tokens), other.to(self.embeddings).padded(tokens)
        embeddings = torch.where(rows[:, None, None], new.embeddings, before.embeddings)
        pooled = before.pooled
        if pooled is not None and new.pooled is not None:
            pooled = torch.where(rows[:, None], new.pooled, pooled)
        return TextCondition(embeddings, torch.where(rows[:, None], new.mask, before.mask), pooled)
