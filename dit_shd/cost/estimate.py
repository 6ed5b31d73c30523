"""From operations to GPU-hours, at stated assumptions."""

from dataclasses import dataclass

from dit_shd.config import Plugin, option

PEAKS: dict[str, dict[str, float]] = {
    "A100": {"no": 19.5, "bf16": 312, "fp16": 312},
    "H100": {"no": 67, "bf16": 989, "fp16": 989},
}
"""Dense peaks of the SXM cards in TFLOP/s by `precision`, from NVIDIA's data sheets; `no` is float32 without TF32."""


@dataclass(frozen=True)
class EstimateConfig:
    """What dry_run assumes."""

    mfu: float = option(0.3, "share of the peak that is reached: an assumption, not a measurement")
    peak_tflops: float | None = option(None, "peak of your own GPU in TFLOP/s; empty: A100 and H100")
    samples: int = option(50_000, "images sampled for one evaluation")
    sampling_steps: int = option(250, "steps of the sampler; guided: two forwards each")
    teacher: Plugin | None = option(None, "the teacher while its file is not there yet: {name: mdt, size: B/2}")
    measure: bool = option(True, "also take one real step, at batch 1 and random weights")


def peaks(config: EstimateConfig, precision: str) -> dict[str, float]:
    """GPU -> peak in TFLOP/s."""
    if config.peak_tflops is not None:
        return {f"{config.peak_tflops:g} TFLOP/s": config.peak_tflops}
    return {name: by_precision[precision] for name, by_precision in PEAKS.items()}


def hours(operations: float, peak_tflops: float, mfu: float) -> float:
    """GPU-hours that some operations take."""
    return operations / (peak_tflops * 1e12 * mfu) / 3600
