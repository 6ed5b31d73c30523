"""The sequences of tokens that a module or a model is given."""

import functools
import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tokens:
    """The sequences that a module was given."""

    lengths: dict[str, int] = field(default_factory=dict[str, int])
    """By the names of its arguments."""
    samples: int | None = None
    """b, if it is known."""
    sizes: tuple[tuple[int, int], ...] = ()
    """(tokens of all samples, their width) of its features, the first ones: as [...,e], or as [b,e,...]."""
    frames: tuple[int, int] | None = None
    """(t, n) of those, if they are [b,t,n,e] and alone."""
    alone: bool = False
    """Whether no other argument is as wide as they are: those may be queries, keys and values."""


@functools.cache
def token_places(function: Any, skip: int = 1) -> tuple[str, ...]:
    """The names of what a function takes, in order."""
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return tuple(p.name for p in list(inspect.signature(function).parameters.values())[skip:] if p.kind not in kinds)


def tokens_of(places: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tokens:
    """How many tokens the sequences have that a module was given, and how many samples."""
    given = {**dict(zip(places, args)), **kwargs}
    lengths = {name: x.shape[1] for name, x in given.items() if is_sequence(x)}
    first = features_of((*args, *kwargs.values()))
    if first is None or not first.ndim:
        return Tokens(lengths)
    wide = first.is_floating_point() and first.ndim > 1 and not first.is_nested
    widths = ([first.shape[-1]] + [first.shape[1]] * (first.ndim > 3)) if wide else []
    more = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x is not first and x.ndim > 2]
    alone = wide and not any(x.is_floating_point() and not x.is_nested and x.shape[-1] == first.shape[-1] for x in more)
    frames = (first.shape[1], first.shape[2]) if alone and first.ndim == 4 else None
    return Tokens(lengths, first.shape[0], tuple((first.numel() // e, e) for e in widths if e), frames, alone)


def features_of(given: tuple[Any, ...]) -> Tensor | None:
    """What is features among the arguments of a module: the first of them, unless others are and that is not.

    Sizes, indices, masks and numbers of tokens come before the features at times, or a vector of each sample; features
    may lie in a list or a dict.
    """
    first = given[0] if given else None
    known = first if isinstance(first, Tensor) else None
    if known is not None and known.is_floating_point() and known.ndim > 2:
        return known
    for x in tensors_in(given, 2):
        if x.is_floating_point() and x.ndim > 2 and not x.is_nested and x.shape[1] > 1 and _is_beside(known, x):
            return x
    return known


def _is_beside(first: Tensor | None, x: Tensor) -> bool:
    """Whether `first` is no features [n,e] of a packed sequence, as other features x [b,n,...,e] come after it."""
    if first is None or first.ndim != 2 or not first.is_floating_point():
        return True
    return first.shape[0] in x.shape[:2] and first.shape[1] <= x.shape[-1]


def tensors_in(value: Any, depth: int = 3) -> list[Tensor]:
    """The tensors in a value, in order, also those in lists and dicts in it."""
    return [tensor for _, tensor in keyed_tensors(value, depth)]


def keyed_tensors(value: Any, depth: int = 3, key: str = "") -> Iterator[tuple[str, Tensor]]:
    """The same, each with the keys of mappings that lead to it."""
    if isinstance(value, Tensor):
        yield key, value
    elif depth and isinstance(value, (list, tuple)):
        for each in value:
            yield from keyed_tensors(each, depth - 1, key)
    elif depth and isinstance(value, dict):
        for name, each in value.items():
            yield from keyed_tensors(each, depth - 1, f"{key}.{name}")


def shapes_of(value: Any) -> tuple[tuple[int, ...], ...]:
    """The shapes of the tensors in a value, in order."""
    return tuple(tuple(x.shape) for x in tensors_in(value, 4) if not x.is_nested)


def is_sequence(value: Any) -> bool:
    """Whether a value is features of tokens [b,n,e], or the tokens' numbers [b,n]."""
    if not isinstance(value, Tensor):
        return False
    return value.ndim == 3 or (value.ndim == 2 and value.dtype in (torch.int32, torch.int64))
