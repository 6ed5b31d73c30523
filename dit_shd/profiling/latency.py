"""Cost of one forward pass of a model."""

import statistics
import time
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

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            forward(LATENCY_BATCH)
            seconds = []
            for _ in range(repeats):
                start = time.perf_counter()
                forward(LATENCY_BATCH)
                seconds.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return Cost(
        heads=shape.heads,
        parameters=sum(p.numel() for p in model.parameters()),
        flops=forward_operations(model),
        latency_ms=1e3 * statistics.median(seconds) / LATENCY_BATCH,
    )
