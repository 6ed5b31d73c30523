"""What squeezing reads of a teacher, by kernels: values met by maps, and the sums of its rows."""

import itertools
from typing import Any

import torch
from torch import Tensor

from dit_shd.attention.capture import Capture
from dit_shd.attention.kernels.captures import operators, rows_together, side_of
from dit_shd.attention.tiles import index_tensor

MOST = 4
"""Values that a program meets with one map."""


def values_met(capture: Capture, groups: list[list[int]]) -> tuple[Tensor, Tensor, Tensor]:
    """A_i V_a [b,G k,k,n,d] of the heads i of groups, in their order, with the values of their groups.

    Args:
        capture: The capture of the teacher.
        groups: G, of k heads each; other heads are left alone.

    Returns:
        The values; top and 1/total of these heads' rows [b,G k,n].
    """
    members = tuple(itertools.chain(*groups))
    partners = [capture.key_heads(group) for group in groups for _ in group]
    k = len(groups[0])
    parts = [
        _attend(capture, 1.0, members, [row[first : first + MOST] for row in partners]) for first in range(0, k, MOST)
    ]
    return parts[0][0] if len(parts) == 1 else torch.cat([out for out, *_ in parts], 2), *parts[0][1:]


def row_sums(capture: Capture, temperature: float, heads: tuple[int, ...] | None = None) -> tuple[Tensor, Tensor]:
    """Top and 1/total of the scores over T of every row [b,h,n], or of the rows of some heads."""
    heads = tuple(range(capture.heads)) if heads is None else heads
    return _attend(capture, temperature, heads, [[] for _ in heads])[1:]


def _attend(
    capture: Capture, temperature: float, heads: tuple[int, ...], partners: list[list[int]]
) -> tuple[Tensor, Tensor, Tensor]:
    """The operator, for as many values as a block can have: a power of two, or none."""
    count = len(partners[0])
    width = 4 if count == 3 else count
    padded = tuple(itertools.chain(*([*row, *[-1] * (width - count)] for row in partners)))
    device = capture.query.device
    at, place = (index_tensor(x, device, torch.int32) for x in (heads, padded))
    side: dict[str, Any] = side_of(capture, temperature)
    value = rows_together(capture.value if count else capture.key)  # without values any tensor stands for them
    partners_of = place.view(len(heads), width)
    out, top, inverse = operators.attend(**side, value=value, heads=at, partners=partners_of)
    return out if width == count else out[:, :, :count], top, inverse
