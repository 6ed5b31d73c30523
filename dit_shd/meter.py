"""How fast a run goes, and in how much memory: the numbers of timing.jsonl."""

import resource
import sys
import time
from dataclasses import dataclass, field

import torch

PEAK_TFLOPS = {
    "H200": 989.0, "H100 PCIe": 756.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "RTX 4090": 165.0, "V100": 125.0,
}  # fmt: skip
"""Dense 16-bit products a second (10^12), by the makers' data sheets; found by a part of the device's name."""


@dataclass
class Meter:
    """Counts steps between two rows of the log.

    Args:
        images: of one optimizer step, over all processes.
        operations: of one image, all passes of both models (a multiply-add counts as two).
        peak_tflops: of all devices together, for the utilisation (MFU); None: not known.
    """

    images: int
    operations: float
    peak_tflops: float | None
    device: torch.device
    _steps: int = 0
    _since: float = field(default_factory=time.perf_counter)

    def step(self) -> None:
        """An optimizer step is done."""
        self._steps += 1

    def pause(self) -> None:
        """Begin anew: what came since the last row (a save, an evaluation) is no training."""
        self._steps, self._since = 0, time.perf_counter()

    def row(self) -> dict[str, float]:
        """seconds (of a step), images_per_second, tflops (10^12 operations a second), mfu (share of the peak),
        memory_gib (the peak of this process: on its GPU, or resident)."""
        seconds = (time.perf_counter() - self._since) / max(1, self._steps)
        tflops = self.images * self.operations / seconds / 1e12
        found = {"seconds": seconds, "images_per_second": self.images / seconds, "tflops": tflops}
        if self.peak_tflops is not None:
            found["mfu"] = tflops / self.peak_tflops
        found["memory_gib"] = peak_memory(self.device) / 2**30
        self.pause()
        return {name: float(f"{number:.4g}") for name, number in found.items()}


def peak_memory(device: torch.device) -> int:
    """Bytes: the most this process has allocated on its GPU, or has had in memory where there is none."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def known_peak(device: torch.device) -> float | None:
    """Peak of a device that is known by name, in 10^12 operations a second; None for others."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAK_TFLOPS.items() if part in name), None)
