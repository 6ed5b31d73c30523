"""Cost of one forward pass of a model."""

import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dit_shd.models.shape import shape_of
from dit_shd.profiling.flops import forward_operations
from dit_shd.tasks import Task

LATENCY_BATCH = 16


@dataclass(frozen=True)
class Cost:
    """Cost of one forward pass of a model."""

    heads: int
    parameters: int
    flops: int
    """For one image; a multiply-add counts as two."""
    latency_ms: float
    """Per image, at batch 16 on one CPU thread; the median of several passes."""


def cost(model: nn.Module, task: Task[Any], repeats: int = 9) -> Cost:
    """Measure a model on the CPU, on one thread.

    Args:
        model: A transformer of latents.
        task: Asks it; the first pass of its steps is measured.
        repeats: Passes whose median is the latency.
    """
    batch = task.example(model, LATENCY_BATCH, torch.device("cpu"))[0]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            task.predict(model, batch)
            seconds = []
            for _ in range(repeats):
                start = time.perf_counter()
                task.predict(model, batch)
                seconds.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return Cost(
        heads=shape_of(model).heads,
        parameters=sum(p.numel() for p in model.parameters()),
        flops=forward_operations(model, task, batch.pass_name),
        latency_ms=1e3 * statistics.median(seconds) / LATENCY_BATCH,
    )
