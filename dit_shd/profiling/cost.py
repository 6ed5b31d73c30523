"""What one forward pass of a model costs."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """Cost of one forward pass of a model."""

    heads: int
    parameters: int
    flops: int
    """For one image; a multiply-add counts as two."""
    latency_ms: float
    """Per image, at batch 16 on one CPU thread; the median of several passes."""
