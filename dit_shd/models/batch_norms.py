"""Batch norms of a student: by them a sample's prediction depends on the batch that it is in."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dit_shd.core.errors import UserError

Statistics = list[tuple[Tensor, Tensor]]
"""Buffers of batch norms, each with a copy of what it was."""


def batch_norms(model: nn.Module) -> dict[str, nn.Module]:
    """The batch norms of a model, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}


def least_batch(model: nn.Module) -> int:
    """The smallest batch that a model in training takes: of a single vector a batch norm has no variance."""
    return 2 if batch_norms(model) else 1


@contextmanager
def kept_statistics(model: nn.Module) -> Generator[None]:
    """Leave the running statistics of batch norms as they are, whatever runs in the block: no step of training."""
    before = statistics(model)
    try:
        yield
    finally:
        restore(before)


def statistics(model: nn.Module) -> Statistics:
    """The running statistics of a model's batch norms; none where it has none."""
    return [(buffer, buffer.clone()) for norm in batch_norms(model).values() for buffer in norm.buffers()]


def restore(before: Statistics) -> None:
    """Give batch norms the statistics back that they had."""
    for buffer, value in before:
        buffer.copy_(value)


def count_once(model: nn.Module) -> None:
    """Leave the running statistics alone where blocks run again in the backward: a batch counts once, as without."""
    momenta: dict[nn.Module, float | None] = {}

    def before(norm: Any, _: object) -> None:  # noqa: ANN401 - a batch norm
        if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:  # in a backward
            momenta[norm], norm.momentum = norm.momentum, 0.0

    def after(norm: Any, *_: object) -> None:  # noqa: ANN401
        if not torch.compiler.is_compiling() and norm in momenta:
            norm.momentum = momenta.pop(norm)
            norm.num_batches_tracked -= 1

    for norm in batch_norms(model).values():
        if norm.track_running_stats:
            norm.register_forward_pre_hook(before)
            norm.register_forward_hook(after, always_call=True)  # recomputation may end inside of it


@contextmanager
def wanting_samples() -> Generator[None]:
    """Say what to do where a batch norm finds one vector of a channel, of which there is no variance.

    Raises:
        UserError: It does.
    """
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            "micro_batch_size: the student's batch norms take the variance of a micro batch, which 1 sample does not "
            "have; wanted 2 or more"
        ) from error


@contextmanager
def evaluated_norms(model: nn.Module) -> Generator[None]:
    """Batch norms by their statistics, which stay as they are: a single sample runs, and takes as many operations."""
    modes = [(norm, norm.training) for norm in batch_norms(model).values()]
    try:
        for norm, _ in modes:
            norm.eval()
        yield
    finally:
        for norm, training in modes:
            norm.train(training)


def remark(model: nn.Module) -> str | None:
    """A warning of batch norms, by which a run depends on how its batch is divided; None where there are none."""
    names = list(batch_norms(model))
    if not names:
        return None
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return (
        f"student: {names[0]}{more} are batch norms, whose means are of one process's micro batch: micro_batch_size "
        "and the number of processes change this run, and the statistics that are exported are the first process's"
    )
