"""Cost of one forward pass of a model."""

import statistics
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from dit_shd.models.shape import shape_of
from dit_shd.profiling.flops import forward_operations

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


def cost(model: nn.Module, repeats: int = 9) -> Cost:
    """Measure a model on the CPU, on one thread."""
    shape = shape_of(model)

    def forward(b: int) -> None:
        model(
            torch.zeros(b, *shape.latents),
            torch.zeros(b, dtype=torch.long),
            class_labels=torch.zeros(b, dtype=torch.long),
        )

    with torch.no_grad(), one_thread():
        seconds = median_seconds(lambda: forward(LATENCY_BATCH), repeats)
    return Cost(
        heads=shape.heads,
        parameters=sum(p.numel() for p in model.parameters()),
        flops=forward_operations(model),
        latency_ms=1e3 * seconds / LATENCY_BATCH,
    )


def median_seconds(run: Callable[[], object], repeats: int = 9) -> float:
    """The median time of several calls after a first one that does not count.

    Args:
        run: what is called.
        repeats: calls that count.
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
