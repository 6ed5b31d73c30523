"""From operations to GPU-hours, at stated assumptions."""

from dataclasses import dataclass

import torch

from dit_shd.config import Plugin, option

PEAKS: dict[str, dict[str, float]] = {
    "A100": {"no": 19.5, "bf16": 312, "fp16": 312},
    "H100": {"no": 67, "bf16": 989, "fp16": 989},
}
"""Dense peaks of the SXM cards in TFLOP/s by `precision`, from NVIDIA's data sheets; `no` is float32 without TF32."""
KIN = {"H200": "H100", "GH200": "H100"}
"""Cards with the same peaks."""


@dataclass(frozen=True)
class EstimateConfig:
    """What dry_run assumes, and what the utilisation is a share of."""

    mfu: float = option(0.3, "share of the peak that is reached: an assumption, not a measurement")
    peak_tflops: float | None = option(None, "peak of your own GPU in TFLOP/s, also for the MFU in timing.jsonl")
    samples: int = option(50_000, "images sampled for one evaluation")
    sampling_steps: int = option(250, "steps of the sampler; guided: two forwards each")
    teacher: Plugin | None = option(None, "the teacher while its file is not there yet: {name: mdt, size: B/2}")
    measure: bool = option(True, "also take one real step, at batch 1 and random weights")


def peaks(config: EstimateConfig, precision: str) -> dict[str, float]:
    """GPU -> peak in TFLOP/s."""
    if config.peak_tflops is not None:
        return {f"{config.peak_tflops:g} TFLOP/s": config.peak_tflops}
    return {name: by_precision[precision] for name, by_precision in PEAKS.items()}


def peak_of(config: EstimateConfig, precision: str, device: torch.device) -> float | None:
    """The peak of a device in TFLOP/s, as the config says or by its name; None where neither tells."""
    if config.peak_tflops is not None or device.type != "cuda":
        return config.peak_tflops
    name = torch.cuda.get_device_name(device)
    return next((PEAKS[KIN.get(card, card)][precision] for card in [*KIN, *PEAKS] if card in name), None)


def hours(operations: float, peak_tflops: float, mfu: float) -> float:
    """GPU-hours that some operations take."""
    return operations / (peak_tflops * 1e12 * mfu) / 3600
