"""Measures what one forward pass of a model costs."""

import statistics
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from dit_shd.models.shape import shape_of
from dit_shd.profiling.cost import Cost
from dit_shd.profiling.flops import forward_operations
from dit_shd.tasks import Task

LATENCY_BATCH = 16


def cost(model: nn.Module, task: Task[Any], repeats: int = 9) -> Cost:
    """Measure a model on the CPU, on one thread.

    Args:
        model: A transformer of latents.
        task: Asks it; the first pass of its steps is measured.
        repeats: Passes whose median is the latency.
    """
    batch = task.example(model, LATENCY_BATCH, torch.device("cpu"))[0]
    with torch.no_grad(), one_thread():
        seconds = median_seconds(lambda: task.predict(model, batch), repeats)
    return Cost(
        heads=shape_of(model).heads,
        parameters=sum(p.numel() for p in model.parameters()),
        flops=forward_operations(model, task, batch.pass_name),
        latency_ms=1e3 * seconds / LATENCY_BATCH,
    )


def median_seconds(run: Callable[[], object], repeats: int = 9) -> float:
    """The median time of several calls after a first one that does not count.

    Args:
        run: What is called.
        repeats: Calls that count.
    """
    run()
    seconds: list[float] = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


@contextmanager
def one_thread() -> Generator[None]:
    """Let torch use one CPU thread in the block."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
