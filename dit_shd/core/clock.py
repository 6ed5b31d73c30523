"""The time that work on a device takes."""

import time

import torch


def finished(device: torch.device) -> float:
    """The time in seconds (time.perf_counter) once a device has done all that it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()
