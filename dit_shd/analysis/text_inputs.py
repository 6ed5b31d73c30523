"""Inputs of a language model whose attention is analysed: sequences of a text, each alone in its forward."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from dit_shd.analysis.inputs import Inputs
from dit_shd.core import rng
from dit_shd.core.errors import UserError
from dit_shd.data.datasets.text import Text
from dit_shd.data.packing import positions

PICTURED_TOKENS = 48
"""First tokens of a sequence whose maps are drawn; in causal attention later ones change nothing of theirs."""


class TextInputs(Inputs):
    """Token sequences without padding, so that rows of padding are in no figure.

    Args:
        sequences: Token numbers, each [n].
        places: Of each token in its document [n], which keeps packed documents apart.
        labels: The text of each token of the first sequence.
    """

    name = "sequences of the text"

    def __init__(self, sequences: Sequence[Tensor], places: Sequence[Tensor], labels: Sequence[str]):
        self.sequences, self.places, self.labels = sequences, places, labels
        self.batches = [range(i, i + 1) for i in range(len(sequences))]
        self.fraction = False
        lengths = sorted({len(sequence) for sequence in sequences})
        tokens = str(lengths[0]) if len(lengths) == 1 else f"{lengths[0]} to {lengths[-1]}"
        self.words = f"{len(sequences)} sequences of the text, of {tokens} tokens"

    @classmethod
    def of(cls, data: Text, samples: int, seed: int) -> Self:
        """Some sequences of a text, in an order of the seed; those of fewer than two tokens are left out.

        Args:
            data: The text, in the tokens of the model.
            samples: How many, at most.
            seed: The seed of the choice.
        """
        indices = rng.permutation(seed, "inspect", 0, len(data))[:samples]
        drawn = data.batch(np.sort(indices), rng.Draws(seed, 0, range(len(indices)), len(indices)))
        documents = drawn["documents"][:, :-1]
        places = torch.from_numpy(positions(documents.numpy()))
        real = [row >= 0 for row in documents]
        rows = [(tokens[:-1][kept], place[kept]) for tokens, place, kept in zip(drawn["tokens"], places, real)]
        rows = [row for row in rows if len(row[0]) > 1]
        if not rows:
            raise UserError(f"text: wanted sequences of two tokens or more, found none among the {len(real)} drawn")
        labels = [data.tokenizer.text(token) for token in rows[0][0].tolist()]
        return cls([row[0] for row in rows], [row[1] for row in rows], labels)

    def first_tokens(self, count: int = PICTURED_TOKENS) -> Self:
        """The beginning of the first sequence.

        Args:
            count: Tokens of it, at most.
        """
        return type(self)([self.sequences[0][:count]], [self.places[0][:count]], self.labels[:count])

    def keywords(self, samples: range, t: int) -> dict[str, Any]:
        i = samples.start
        return {"input_ids": self.sequences[i][None], "position_ids": self.places[i][None], "use_cache": False}
