"""What query rows count, as a script gives it: a weight [b,n] for all layers, or one for each kind of layer."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from dit_shd.attention.capture import Capture
from dit_shd.core.errors import UserError

RowWeight = Tensor | Mapping[str, Tensor]
"""[b,n], or {pattern of the student's layers: [b,n]}; layers that fit no pattern count 1 a row."""


def rows_of(given: object, name: str, layer: Capture, values: bool) -> Tensor | None:
    """The weights of a layer's query rows; None where each counts 1.

    Args:
        given: By a script; None: 1 each.
        name: Of the student's layer.
        layer: Either model's.
        values: Whether to look at the numbers also where that waits for a card.

    Raises:
        UserError: No tensor, another shape, or a number below 0 or that is none.
    """
    weight: object = given
    if isinstance(given, Mapping):
        weight = next((each for pattern, each in given.items() if fnmatchcase(name, str(pattern))), None)
    if weight is None:
        return None
    b, _, n, _ = layer.shape
    if not isinstance(weight, Tensor):
        raise UserError(f"SHD: row_weight: wanted a tensor [{b},{n}], found {type(weight).__name__}")
    if layer.share < 1:
        weight = _of_sample(weight, name, layer)
    if weight.shape != (b, n):
        each = "" if isinstance(given, Mapping) else "; where layers have other rows, {pattern of names: [b,n]}"
        raise UserError(f"SHD: row_weight: wanted [{b},{n}], the rows of {name}, found {list(weight.shape)}{each}")
    if (values or weight.device.type == "cpu") and not bool(((weight >= 0) & weight.isfinite()).all()):
        raise UserError("SHD: row_weight: wanted finite numbers of 0 or more, found others")
    return weight


def _of_sample(weight: Tensor, name: str, layer: Capture) -> Tensor:
    """The row [1,n] of [b,n] that is of a layer's share, where that takes its samples one at a time.

    Raises:
        UserError: Another shape, as where each sample has as many rows as it has tokens without padding.
    """
    b, _, n, _ = layer.shape
    samples = round(b / layer.share)
    if b > 1 or weight.shape != (samples, n):
        raise UserError(
            f"SHD: row_weight: {name} takes its samples in parts without their padding, here {b} of {samples} with {n} "
            f"rows, found {list(weight.shape)}; leave the weight out (rows that are given all count), or name other "
            "layers: {pattern of names: [b,n]}"
        )
    run = name.partition(":")[0].partition("#")[2] or "1"
    return weight[(int(run) - 1) % samples][None]


def check_patterns(given: object, names: Sequence[str]) -> None:
    """Refuse a pattern that fits none of the student's layers, or that stands for no tensor.

    Raises:
        UserError: Naming the layers, or the pattern.
    """
    for pattern, weight in given.items() if isinstance(given, Mapping) else ():
        if not any(fnmatchcase(name, str(pattern)) for name in names):
            raise UserError(f"SHD: row_weight: no layer fits '{pattern}'. Layers: {', '.join(names)}")
        if not isinstance(weight, Tensor):
            raise UserError(f"SHD: row_weight: '{pattern}': wanted a tensor [b,n], found {type(weight).__name__}")


def nothing(given: RowWeight) -> Tensor:
    """0 for each sample [b]; NaN for those with a weight that is NaN or below 0, which would be left out otherwise."""
    weights = list(given.values()) if isinstance(given, Mapping) else [given]
    return sum((0 * weight.sqrt().sum(1) for weight in weights), torch.zeros(()))
