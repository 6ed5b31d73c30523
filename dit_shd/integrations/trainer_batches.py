"""The batches of trainers of transformers and TRL: which query rows take part in SHD, and what a teacher is given."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dit_shd.attention.capture import Captures
from dit_shd.core.errors import UserError
from dit_shd.tasks import Batch

IGNORED = -100
"""The label of tokens that are not learned, in transformers and TRL."""
TEXT = ("input_ids", "attention_mask", "position_ids")
"""What a language model is given, whether its forward names it or not."""
NOT_TEXT = ("pixel_values", "input_features", "input_values")
"""How inputs of images and sound begin, whose attention has other tokens than the labels."""
OF_LOSS = ("labels", "num_items_in_batch")
"""Inputs of which a forward makes its loss, and nothing of the attention."""
BIDIRECTIONAL = ("ForMaskedLM", "ForPreTraining", "ForTokenClassification")
"""How classes of transformers end that learn tokens from both of their sides."""
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


def is_causal(model: nn.Module) -> bool:
    """Whether a language model, not wrapped, predicts the next token, rather than those that are masked."""
    whole: Any = getattr(model, "get_base_model", lambda: model)()
    return not any(cls.__name__.endswith(BIDIRECTIONAL) for cls in type(whole).__mro__)


def query_rows(inputs: Inputs, prompts: bool = False, causal: bool = True) -> Tensor:
    """The query rows that take part, boolean [b,n].

    Of a batch with labels these are the tokens that are learned, by their own label. In a causal model a document's
    last token predicts nothing and takes no part, whatever the batch is padded to and on which side, and whether
    documents are packed into a row: the same rows count however a batch is divided. Packing labels a document's first
    token as not learned; it takes part where the next one is. Of texts that TRL's DistillationTrainer has generated,
    they are the tokens of the completion, which are what it divides its loss by.

    Args:
        inputs: `labels` (-100: not learned), or TRL's prompt_ids, completion_ids and completion_mask. Where packed
            documents begin, `position_ids`, `seq_idx` or `cu_seq_lens_q` say.
        prompts: Whether tokens of prompts take part, too: all but padding.
        causal: Whether the model predicts the next token.

    Raises:
        UserError: Neither is there, or the labels are not those of tokens.
    """
    if "completion_mask" in inputs and "prompt_ids" in inputs:
        return _completion_rows(inputs, prompts)
    labels, real = inputs.get("labels"), inputs.get("attention_mask")
    if not isinstance(labels, Tensor):
        raise UserError(f"add_shd: wanted labels in the trainer's batch, found {', '.join(inputs)}")
    if labels.ndim != 2:
        raise UserError(f"add_shd is for language models: wanted labels [b,n], found {list(labels.shape)}")
    if not isinstance(real, Tensor) or real.shape != labels.shape:  # of packed sequences it may be a mask [b,1,n,n]
        real = torch.ones_like(labels)
    real = real.bool()
    learned = labels != IGNORED
    rows = real if prompts else real & learned
    if not causal:
        return rows
    first, following = first_tokens(inputs), real
    if first is not None:
        rows = rows | real & first & _next(learned)
        following = real & ~first
    return rows & _next(following)


def _next(tokens: Tensor) -> Tensor:
    """What holds of each token's next one [b,n]; of a last one nothing does."""
    return F.pad(tokens[:, 1:], (0, 1))


def first_tokens(inputs: Inputs) -> Tensor | None:
    """Where documents begin in the rows of a batch with labels, boolean [b,n]; None where the batch does not say."""
    labels, changes = inputs.get("labels"), list[Tensor]()
    if not isinstance(labels, Tensor) or labels.ndim != 2:
        return None
    places, documents, ends = (inputs.get(name) for name in ("position_ids", "seq_idx", "cu_seq_lens_q"))
    if isinstance(places, Tensor) and places.shape in (labels.shape, (1, labels.shape[1])):
        changes.append(places[:, 1:] <= places[:, :-1])
    if isinstance(documents, Tensor) and documents.shape == labels.shape:
        changes.append(documents[:, 1:] != documents[:, :-1])
    if isinstance(ends, Tensor) and len(labels) == 1:
        at = torch.arange(1, labels.shape[1], device=ends.device)
        changes.append(torch.isin(at, ends)[None])
    if not changes:
        return None
    first = torch.ones_like(labels, dtype=torch.bool)
    first[:, 1:] = torch.stack([change.expand(len(labels), -1).to(labels.device) for change in changes]).any(0)
    return first


def check_apart(teacher: Captures, student: Captures, inputs: Inputs) -> bool:
    """Refuse models of which one alone keeps packed documents apart.

    Args:
        teacher: Captures of its forward.
        student: Captures of its forward.
        inputs: The trainer's batch of both.

    Returns:
        Whether the batch has a document after another one, so that this could be told.

    Raises:
        UserError: Every layer of one model hides the token before each document, and a layer of the other shows it.
    """
    first, real = first_tokens(inputs), inputs.get("attention_mask")
    if first is not None and isinstance(real, Tensor) and real.shape == first.shape:
        first = first & real.bool() & F.pad(real[:, :-1].bool(), (1, 0))
    if first is None or not bool(first[:, 1:].any()):
        return False
    hides = {role: _hides_before(first, each) for role, each in (("teacher", teacher), ("student", student))}
    for one, other in (("teacher", "student"), ("student", "teacher")):
        together = [name for name, hidden in hides[other].items() if hidden is False]
        if together and all(hides[one].values()):
            raise UserError(
                f"add_shd: in {together[0]} of the {other} packed documents attend to each other, in the {one} they do "
                "not; wanted use_cache=False for both (model.config.use_cache = False), or texts that are not packed"
            )
    return True


def _hides_before(first: Tensor, captures: Captures) -> dict[str, bool | None]:
    """Whether each layer's mask hides the tokens before some [b,n]; None where it hides a part, or has other tokens."""
    hides: dict[str, bool | None] = {}
    b, n = first.shape
    for name, capture in captures.items():
        hidden = capture.hidden(slice(None))
        if hidden is None or (capture.shape[0], *capture.shape[2:]) != (b, n, n):
            hides[name] = False if hidden is None else None
            continue
        before = hidden[:, :1].expand(b, 1, n, n)[:, 0].diagonal(-1, 1, 2)[first[:, 1:].to(hidden.device)]
        hides[name] = bool(before[0]) if bool((before == before[0]).all()) else None
    return hides


def _completion_rows(inputs: Inputs, prompts: bool) -> Tensor:
    completion = inputs["completion_mask"].bool()
    if "tool_mask" in inputs and not prompts:
        completion = completion & inputs["tool_mask"].bool()
    prompt = inputs["prompt_mask"].bool() if prompts else torch.zeros_like(inputs["prompt_ids"], dtype=torch.bool)
    return torch.cat([prompt, completion], dim=1)


def teacher_inputs(inputs: Inputs, teacher: nn.Module) -> dict[str, Tensor]:
    """The keywords of a teacher's forward that the trainer itself does not run: all of the batch that it names.

    Args:
        inputs: As for query_rows.
        teacher: Not wrapped.

    Raises:
        UserError: A batch of images or sound.
    """
    other = next((name for name in inputs if name.startswith(NOT_TEXT)), None)
    if other is not None:
        raise UserError(f"add_shd is for language models over text alone; the trainer's batch has {other}")
    if "prompt_ids" in inputs and "completion_ids" in inputs:
        return {
            "input_ids": torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            "attention_mask": torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
        }
    named = {*TEXT, *_parameters(teacher)} - {*OF_LOSS}
    return {name: x for name, x in inputs.items() if name in named and isinstance(x, Tensor)}


def without_cache(teacher: nn.Module) -> dict[str, bool]:
    """The argument by which a model that can keep keys and values for later tokens does not."""
    return {"use_cache": False} if "use_cache" in _parameters(teacher) else {}


def _parameters(model: nn.Module) -> Mapping[str, inspect.Parameter]:
    whole: Any = getattr(model, "get_base_model", lambda: model)()  # adapters of PEFT name nothing
    return inspect.signature(whole.forward).parameters
