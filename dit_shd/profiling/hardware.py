"""Devices: what they could do, what they hold."""

import resource
import sys

import torch

PEAK_TFLOPS = {
    "H200": 989.0, "H100 PCIe": 756.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "RTX 4090": 165.0, "V100": 125.0,
}  # fmt: skip
"""Dense 16-bit products a second (10^12), by the makers' data sheets; found by a part of the device's name."""


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


def current_device() -> torch.device:
    """The accelerator, if there is one."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")
