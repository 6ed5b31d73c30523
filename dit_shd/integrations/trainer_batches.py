"""The batches of trainers of transformers and TRL: which query rows take part in SHD, and what a teacher is given."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dit_shd.core.errors import UserError
from dit_shd.tasks import Batch

IGNORED = -100
"""The label of tokens that are not learned, in transformers and TRL."""
Inputs = dict[str, Any]
"""What a trainer gives to compute_loss."""


@dataclass(frozen=True, eq=False)
class WeightedRows(Batch):
    """A batch of which only the weights of its query rows are known."""

    weight: Tensor
    """[b,n]"""

    def row_weight(self, tokens: int) -> Tensor:
        """The weights.

        Raises:
            UserError: A layer of other tokens.
        """
        if tokens != self.weight.shape[1]:
            raise UserError(
                f"add_shd: a layer has {tokens} query rows, the trainer's batch {self.weight.shape[1]} tokens; "
                "losses on attention want layers of all tokens"
            )
        return self.weight


def query_rows(inputs: Inputs, prompts: bool = False) -> Tensor:
    """The query rows that take part, boolean [b,n].

    Of a batch with labels these are the tokens that are learned. The last one of a sequence predicts nothing and takes
    no part, as in our own task, whose models are not given it. Of texts that TRL's DistillationTrainer has generated,
    they are the tokens of the completion, which are what it divides its own loss by.

    Args:
        inputs: `labels` (-100: not learned), or TRL's prompt_ids, completion_ids and completion_mask.
        prompts: Whether tokens of prompts take part, too: all but padding.

    Raises:
        UserError: Neither is there.
    """
    if "completion_mask" in inputs and "prompt_ids" in inputs:
        return _completion_rows(inputs, prompts)
    labels, real = inputs.get("labels"), inputs.get("attention_mask")
    if not isinstance(labels, Tensor):
        raise UserError(f"add_shd: wanted labels in the trainer's batch, found {', '.join(inputs)}")
    rows = torch.ones_like(labels, dtype=torch.bool) if prompts else labels != IGNORED
    if isinstance(real, Tensor) and real.shape == rows.shape:  # of packed sequences it may be a mask [b,1,n,n]
        rows = rows & real.bool()
    rows[:, -1] = False
    return rows


def _completion_rows(inputs: Inputs, prompts: bool) -> Tensor:
    completion = inputs["completion_mask"].bool()
    if "tool_mask" in inputs and not prompts:
        completion = completion & inputs["tool_mask"].bool()
    prompt = inputs["prompt_mask"].bool() if prompts else torch.zeros_like(inputs["prompt_ids"], dtype=torch.bool)
    return torch.cat([prompt, completion], dim=1)


def teacher_inputs(inputs: Inputs) -> dict[str, Tensor]:
    """The keywords of a teacher's forward that the trainer itself does not run.

    Args:
        inputs: As for query_rows.
    """
    if "prompt_ids" in inputs and "completion_ids" in inputs:
        return {
            "input_ids": torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            "attention_mask": torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
        }
    return {name: inputs[name] for name in ("input_ids", "attention_mask", "position_ids") if name in inputs}
