"""What a function that is linear in its rows makes of unit rows: its weights."""

import math
import threading
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch import Tensor, nn

from dit_shd.attention.recording.arrangement import Arrangement, rows_of, rows_of_result, unit_rows
from dit_shd.attention.recording.sdpa_calls import Given
from dit_shd.core.dtensor import local
from dit_shd.core.rng import kept_generators

NEAR = 0.02
"""How far a result may be from that of the weights it seems to have, relatively: half precision's rounding."""

_AT_WORK = ("torch.", "accelerate.", "dit_shd.attention.recording.")
"""Where hooks are from that do more than look on: sharding, offloading; and the survey's own, which pass over it."""


class _Asking(threading.local):
    """Whether a thread asks a module for its weights."""

    on = False


_asking = _Asking()


@contextmanager
def asking() -> Generator[None]:
    """A block in which what runs is asked for its weights, by one of those who look at a model: several may."""
    before, _asking.on = _asking.on, True
    try:
        yield
    finally:
        _asking.on = before


def is_asking() -> bool:
    """Whether this thread is in such a block."""
    return _asking.on


@torch.no_grad()
def matrix(
    function: Callable[[Tensor], Any],
    like: Tensor,
    arrangement: Arrangement,
    first: int,
    k: int,
    module: nn.Module | None = None,
    hooked: bool = False,
) -> tuple[Tensor, Tensor]:
    """What a function that is linear in its rows makes of unit rows: its weights [k,e], and its bias [e].

    In half precision larger rows are used beside a large bias, in whose rounding the weights would be lost. Randomness
    that the function draws is given back, and a `module` that it runs has copies of its buffers meanwhile, and the
    hooks that its users have set if `hooked`.
    """
    with ExitStack() as stack:
        stack.enter_context(kept_generators(like.device))
        if module is not None:
            stack.enter_context(_copied_buffers(module))
            stack.enter_context(nullcontext() if hooked else _without_hooks(module))
        unit = unit_rows(like, arrangement, first, k)
        made, bias = (_made(function, x, arrangement, k) for x in (unit, torch.zeros_like(unit)))
        weight, scale = made - bias, _scale(made, bias)
        if scale > 1:
            weight = (_made(function, unit * scale, arrangement, k) - bias) / scale
    return weight, bias[0]


def weights_of_module(
    module: nn.Module, more: Given, given: Tensor, made: Tensor, arrangement: Arrangement, first: int, k: int
) -> tuple[Tensor, bool] | None:
    """The weights [k,e] of a module that is linear in its rows, and whether its users' hooks have a part in them.

    Args:
        module: That has run.
        more: What it was given beside its rows.
        given: Its rows.
        made: What it has made of them.
        arrangement: Of the rows.
        first: The first column that is asked for.
        k: How many are.

    Returns:
        None if it is not linear, or takes no unit rows.
    """
    args, kwargs = more
    ways, begin, width = (False,), first, k
    if hooks_of_users(module):  # columns of something else are measured, too: which way is right is to be known
        ways, begin, width = (False, True), 0, rows_of(local(given), arrangement).shape[-1]
    for hooked in ways:
        with suppress(Exception):
            asked = given, arrangement, begin, width, module, hooked
            weight, bias = matrix(lambda x: module(x, *args, **kwargs), *asked)
            if is_of_weights(made, given, arrangement, weight, bias):
                return weight[first - begin : first - begin + k], hooked
    return None


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


def _set_by_users(module: nn.Module) -> list[tuple[dict[int, Any], int, Any]]:
    """The forward hooks of a module that are not PyTorch's or accelerate's, which have work to do, or the survey's."""
    hooks = [(of, key, hook) for of in _hook_dicts(module) for key, hook in of.items()]
    return [each for each in hooks if not str(_home(each[2])).startswith(_AT_WORK)]


def hooks_of_users(module: nn.Module) -> tuple[int, ...]:
    """Ids of the forward hooks of a module and all in it that are its users'."""
    return tuple(id(hook) for each in module.modules() for _, _, hook in _set_by_users(each))


def _home(hook: Any) -> Any:
    return getattr(getattr(hook, "func", hook), "__module__", "")


@contextmanager
def _without_hooks(module: nn.Module) -> Generator[None]:
    """Inside it the hooks of users are not told of what a module makes of unit rows: they keep features, and count."""
    held = [(of, dict(of)) for each in module.modules() if _set_by_users(each) for of in _hook_dicts(each)]
    for each in module.modules():
        for of, key, _ in _set_by_users(each):
            del of[key]
    try:
        yield
    finally:
        for of, before in held:
            of.clear()
            of.update(before)


def _hook_dicts(module: nn.Module) -> tuple[dict[int, Any], dict[int, Any]]:
    return module._forward_pre_hooks, module._forward_hooks


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
