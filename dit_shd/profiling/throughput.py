"""Images and operations a second during a run."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from dit_shd.profiling.hardware import peak_memory


@dataclass
class Throughput:
    """Counts steps between two rows of the log."""

    images: int
    """Of one optimizer step, over all processes."""
    operations: Mapping[int, float] | None
    """For one image, all passes of both models (a multiply-add counts as two), from a step on; None if unknown."""
    peak_tflops: float | None
    """Of all devices together, for the utilisation (MFU); None if it is unknown."""
    device: torch.device
    _steps: int = 0
    _since: float = field(default_factory=time.perf_counter)

    def step(self) -> None:
        """Count an optimizer step."""
        self._steps += 1

    def pause(self) -> None:
        """Restart the clock: the time since the last row (a save, an evaluation) is not training."""
        self._steps, self._since = 0, time.perf_counter()

    def row(self, step: int) -> dict[str, float]:
        """The row of the log for the steps since the last one.

        Args:
            step: The last of them, counted from 0.

        Returns:
            Seconds (of a step), images_per_second, tflops (10^12 operations a second), mfu (share of the peak) and
            memory_gib (the peak of this process: on its GPU, or resident).
        """
        seconds = (time.perf_counter() - self._since) / max(1, self._steps)
        row = {"seconds": seconds, "images_per_second": self.images / seconds}
        if self.operations is not None:
            operations = self.operations[max(first for first in self.operations if first <= step)]
            row["tflops"] = self.images * operations / seconds / 1e12
            if self.peak_tflops is not None:
                row["mfu"] = row["tflops"] / self.peak_tflops
        row["memory_gib"] = peak_memory(self.device) / 2**30
        self.pause()
        return {name: float(f"{number:.4g}") for name, number in row.items()}
