"""Peaks and memory of devices."""

import os
import re
import resource
import sys
from pathlib import Path

import torch

PEAK_TFLOPS = {
    "H200 NVL": 835.0, "H200": 989.0, "GH200": 989.0, "H100 PCIe": 756.0, "H100 NVL": 835.0, "H100": 989.0,
    "A100": 312.0, "L40S": 362.0, "RTX 4090": 165.0, "V100": 125.0,
}  # fmt: skip
"""Dense 16-bit operations a second (10^12) from data sheets, by words of the device's name."""
FLOAT32_TFLOPS = {
    "H200 NVL": 60.0, "H200": 67.0, "GH200": 67.0, "H100 PCIe": 51.0, "H100 NVL": 60.0, "H100": 67.0,
    "A100": 19.5, "L40S": 91.6, "RTX 4090": 82.6, "V100": 15.7,
}  # fmt: skip
"""The same in float32 without TF32."""


def peak_memory(device: torch.device) -> int:
    """The peak in bytes of what this process has allocated on its GPU, or of its resident memory without a GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def known_peak(device: torch.device, precision: str = "bf16") -> float | None:
    """Peak of a known device in 10^12 operations a second at a precision (no: float32); None for others."""
    if device.type != "cuda":
        return None
    name, peaks = torch.cuda.get_device_name(device), FLOAT32_TFLOPS if precision == "no" else PEAK_TFLOPS
    return next((peak for words, peak in peaks.items() if re.search(rf"\b{words}\b", name)), None)  # no RTX A1000


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated: on the GPU, or of main memory as the system or a container counts it."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([free, *limits()])


def limits(system: Path = Path("/sys/fs/cgroup"), process: Path = Path("/proc/self/cgroup")) -> list[int]:
    """Bytes that are left of each limit of memory that this process is under (cgroup v2: a container, a SLURM job).

    Args:
        system: Where groups are folders.
        process: The file that names this process's.
    """
    left: list[int] = []
    try:
        name = next(line for line in process.read_text().splitlines() if line.startswith("0::"))[3:].strip("/")
    except (OSError, StopIteration):  # no Linux, or v1
        return []
    for folder in [system / name, *(system / name).parents]:
        try:
            most, used = (int((folder / f"memory.{kind}").read_text()) for kind in ("max", "current"))
            counts = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            left.append(max(0, most - used + int(counts["inactive_file"])))  # pages of files give way
        except (OSError, ValueError, LookupError):  # not there, or "max": none
            continue
    return left
