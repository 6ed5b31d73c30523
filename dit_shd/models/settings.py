"""What a config says of how weights are used: the same weights under other settings are another model."""

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

TIED = "tie_word_embeddings"
MEANING = re.compile(rf"rope|theta|act(_fn|ivation\w*)?$|eps(ilon)?$|window|{TIED}|norm_type|qk_norm|soft_?cap")
"""Keys of configs of transformers and diffusers that are no sizes, and that the meaning of the weights depends on."""
NONE = (None, False)


def differing_settings(model: nn.Module, other: nn.Module) -> dict[str, tuple[Any, Any]]:
    """Such keys in the configs of two models -> the values of both, where they differ.

    Args:
        model: Of any family, which takes weights of the other. It may untie embeddings that are tied there.
        other: Likewise.
    """
    one, two = _settings(model), _settings(other)
    pairs = {key: (one[key], two[key]) for key in one if key in two and MEANING.search(key)}
    if not one.get(TIED):
        pairs.pop(TIED, None)
    return {key: (a, b) for key, (a, b) in pairs.items() if a != b and not (a in NONE and b in NONE)}


def _settings(model: nn.Module) -> dict[str, Any]:
    """The config of a model, of transformers that of the network inside."""
    values: Any = getattr(getattr(model, "network", None), "config", None) or getattr(model, "config", None)
    values = values.to_dict() if hasattr(values, "to_dict") else values
    return dict(values) if isinstance(values, Mapping) else {}


def in_words(differing: Mapping[str, tuple[Any, Any]]) -> str:
    """Differing settings, in a few words: key: here, there."""
    return ", ".join(f"{key}: {here} here, {there} there" for key, (here, there) in differing.items())
