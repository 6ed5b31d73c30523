"""What a function that is linear in its rows makes of unit rows: its weights."""

import math
from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from dit_shd.attention.recording.arrangement import Arrangement, rows_of, rows_of_result, unit_rows
from dit_shd.attention.recording.weight_samples import local
from dit_shd.core.rng import kept_generators

NEAR = 0.02
"""How far a result may be from that of the weights it seems to have, relatively: half precision's rounding."""


@torch.no_grad()
def matrix(
    function: Callable[[Tensor], Any],
    like: Tensor,
    arrangement: Arrangement,
    first: int,
    k: int,
    module: nn.Module | None = None,
) -> tuple[Tensor, Tensor]:
    """What a function that is linear in its rows makes of unit rows: its weights [k,e], and its bias [e].

    In half precision larger rows are used beside a large bias, in whose rounding the weights would be lost. Randomness
    that the function draws is given back, and a `module` that it runs has copies of its buffers meanwhile.
    """
    with kept_generators(like.device), nullcontext() if module is None else _copied_buffers(module):
        unit = unit_rows(like, arrangement, first, k)
        made, bias = (_made(function, x, arrangement, k) for x in (unit, torch.zeros_like(unit)))
        weight, scale = made - bias, _scale(made, bias)
        if scale > 1:
            weight = (_made(function, unit * scale, arrangement, k) - bias) / scale
    return weight, bias[0]


def is_of_weights(made: Tensor, given: Tensor, arrangement: Arrangement, weight: Tensor, bias: Tensor) -> bool:
    """Whether what a function made is the rows that it was given times weights [k,e]."""
    rows, k = rows_of(local(given), arrangement), len(weight)
    if rows.shape[-1] != k:
        return True  # columns of something else take part: what it is was not measured
    wide = torch.promote_types(weight.dtype, torch.float32)
    want = rows.to(wide) @ weight.to(wide) + bias.to(wide)
    result = rows_of_result(local(made), arrangement).to(wide)
    return result.numel() == want.numel() and bool((result.reshape(want.shape) - want).norm() <= NEAR * want.norm())


def is_diagonal(weight: Tensor) -> bool:
    """Whether weights [k,e] only scale."""
    return weight.shape[0] == weight.shape[1] and bool((weight - weight.diagonal().diag()).count_nonzero() == 0)


@contextmanager
def _copied_buffers(module: nn.Module) -> Generator[None]:
    """Inside it a module writes to copies (statistics of a batch norm, of an observer): graphs may have its buffers."""
    held = [(each, name, x) for each in module.modules() for name, x in each._buffers.items() if x is not None]
    copies = {id(x): x.clone() for _, _, x in held}
    for each, name, x in held:
        each._buffers[name] = copies[id(x)]
    try:
        yield
    finally:
        for each, name, x in held:
            each._buffers[name] = x


def _made(function: Callable[[Tensor], Any], rows: Tensor, arrangement: Arrangement, k: int) -> Tensor:
    """What a function makes of k rows, [k,e]."""
    output = function(rows)
    return rows_of_result(local(output if isinstance(output, Tensor) else output[0]), arrangement).reshape(k, -1)


def _scale(made: Tensor, bias: Tensor) -> float:
    """A power of 2 of rows next to whose product a bias is small."""
    info = torch.finfo(made.dtype)
    if info.bits > 16:
        return 1.0
    largest, typical = (float(x) for x in (bias.abs().max(), (made - bias).float().square().mean().sqrt()))
    room = info.max / 16 / max(float((made - bias).abs().max()), info.tiny)
    wanted = min(largest / max(typical, info.tiny), room, 2.0**12)
    return 2.0 ** math.ceil(math.log2(wanted)) if 0 < wanted < math.inf else 1.0
