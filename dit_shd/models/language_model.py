"""Causal language models of transformers: their config, a check of their attention, and their dropout."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dit_shd.core.errors import UserError, error_line
from dit_shd.core.rng import kept_generators
from dit_shd.models.blocks import named_blocks
from dit_shd.models.evaluation_mode import evaluated

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

ROPE_BEFORE = ("rope_theta", "rope_scaling")
"""Keys of rotary positions before transformers 5."""
LAYERS = "num_hidden_layers"
"""The key of the number of layers, of types whose configs list something of each."""


def text_config(model: nn.Module) -> "PreTrainedConfig | None":
    """The config of a model of transformers, also inside a family of dit_shd; None for other models."""
    config: object = getattr(getattr(model, "network", model), "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else None  # type: ignore[attr-defined]


def has_dropout(model: nn.Module) -> bool:
    """Whether a model has dropout in training."""
    config = text_config(model)
    values = {} if config is None else config.to_dict()
    return any("drop" in key and isinstance(value, float) and value > 0 for key, value in values.items())


@contextmanager
def seeded_dropout(model: nn.Module, seeds: Tensor) -> Generator[None]:
    """Seed the dropout of a model in the block; torch's generators are restored after it.

    Args:
        model: Run in the block.
        seeds: Of the samples [b]; the first is used.
    """
    if not model.training or seeds.is_meta or not has_dropout(model):
        yield
        return
    with kept_generators(seeds.device):
        torch.manual_seed(int(seeds[0]))
        yield


@torch.no_grad()
def check_attention(role: str, model: nn.Module, separate: bool) -> None:
    """Run a model on a few tokens, and again with another last one and another first document.

    Args:
        role: What errors call the model.
        model: A model of transformers, or a family's.
        separate: Whether packed documents, whose positions begin anew, must not attend to each other.

    Raises:
        UserError: Tokens attend to later tokens, or to other documents of their sequence.
    """
    device = next(model.parameters()).device
    name = type(getattr(model, "network", model)).__name__
    tokens = torch.tensor([[0, 1, 0, 0, 1, 1]], device=device)
    positions = torch.tensor([[0, 1, 2, 0, 1, 2]], device=device)
    last, first = tokens.clone(), tokens.clone()
    last[0, 5], first[0, 1], first[0, 2] = 0, 0, 1  # short convolutions look at the document's end alone
    try:
        with evaluated(model):
            plain, changed = (model(input_ids=x, use_cache=False).logits[0] for x in (tokens, last))
            pair = [model(input_ids=x, position_ids=positions, use_cache=False).logits[0] for x in (tokens, first)]
    except (TypeError, ValueError, RuntimeError, IndexError) as error:
        raise UserError(f"{role}: {name} cannot be run on tokens ({error_line(error, 160)})") from error
    if not torch.allclose(plain[:5], changed[:5], atol=1e-6):
        raise UserError(f"{role}: {name} attends to tokens to come; wanted a causal language model")
    if separate and not torch.allclose(pair[0][3:], pair[1][3:], atol=1e-6):
        raise UserError(
            f"{role}: in {name} packed documents attend to each other; task.separate=false lets them, or "
            "data.pack=false gives each a sequence of its own"
        )


def overridden(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A config of transformers with changes, of which rotary positions replace those in the words of earlier releases.

    Args:
        values: As a folder has it, perhaps with the keys rope_theta and rope_scaling, which transformers 5 puts into
            rope_parameters, over whatever is there, and with lists of one entry a layer (layer_types), which another
            number of layers does not have: it has the order of the type of model.
        changes: Keys of a user's.
    """
    earlier = ROPE_BEFORE if "rope_parameters" in changes else ()
    kept = {key: value for key, value in values.items() if key not in earlier}
    if changes.get(LAYERS, values.get(LAYERS)) != values.get(LAYERS):
        kept = {key: value for key, value in kept.items() if not _is_of_layers(key, value, values[LAYERS])}
    return {**kept, **changes}


def _is_of_layers(key: str, value: object, layers: object) -> bool:
    """Whether a key lists something of each layer."""
    return "layer" in key and isinstance(value, list) and len(value) == layers


def kinds_of_attention(model: nn.Module) -> dict[str, str]:
    """Block -> full_attention, sliding_attention or another word of transformers; nothing where the config has none."""
    kinds = getattr(text_config(model), "layer_types", None) or ()
    blocks = named_blocks(model)
    return dict(zip(blocks, kinds)) if len(blocks) == len(kinds) else {}
