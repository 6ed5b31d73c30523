"""Backward passes that have no graph of their own."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from dit_shd.core.errors import UserError


def first_order(backward: Callable[..., Any]) -> Callable[..., Any]:
    """A backward of a torch.autograd.Function, of which second-order gradients are refused.

    once_differentiable alone refuses them only where the incoming gradient depends on a parameter, which that of a
    loss does not: they would lack this function's part without a word.

    Raises:
        UserError: In the backward, if it is asked for a graph (create_graph=True).
    """
    once = once_differentiable(backward)

    @functools.wraps(backward)
    def run(ctx: Any, *upstream: Any) -> Any:  # noqa: ANN401
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise UserError(
                "attention: gradients of gradients (create_graph=True) are not known of it; take the penalty of a "
                "loss without this term, or of attention computed by the model itself"
            )
        return once(ctx, *upstream)

    return run
