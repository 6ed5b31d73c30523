"""Perplexity: how well a language model predicts text it has not seen."""

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from dit_shd.core.errors import UserError


def token_nats(logits: Tensor, targets: Tensor) -> Tensor:
    """-log p of each target token.

    Args:
        logits: [b,n,k].
        targets: Token numbers [b,n].

    Returns:
        Nats [b,n].
    """
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)


@dataclass
class Perplexity:
    """Sums over target tokens, each of which counts the same: exp of their mean -log p."""

    nats: float = 0.0
    tokens: int = 0

    def add(self, logits: Tensor, targets: Tensor, counted: Tensor) -> None:
        """Take in a batch.

        Args:
            logits: [b,n,k].
            targets: Token numbers [b,n].
            counted: Which of them count, boolean [b,n].
        """
        self.nats += float(token_nats(logits, targets).double()[counted].sum())
        self.tokens += int(counted.sum())

    def figures(self, text_bytes: int | None = None) -> dict[str, float]:
        """Nats a token, perplexity and tokens; of whole texts bits a byte, which do not depend on the tokenizer.

        Args:
            text_bytes: Of the texts whose tokens were counted, all of them; None where some were not.

        Raises:
            UserError: There was no token to predict.
        """
        if not self.tokens:
            raise UserError("perplexity: wanted tokens to predict, found none (texts of one token, responses cut off?)")
        mean = self.nats / self.tokens
        figures = {
            "nats": mean,
            "perplexity": math.inf if mean >= 700 else math.exp(mean),
            "tokens": float(self.tokens),
        }
        return figures if text_bytes is None else {**figures, "bits_per_byte": self.nats / math.log(2) / text_bytes}
