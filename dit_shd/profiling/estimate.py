"""From operations to GPU-hours, at stated assumptions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dit_shd.core.config import option
from dit_shd.core.plugins import Plugin
from dit_shd.profiling.flops import Operations
from dit_shd.profiling.hardware import PEAK_TFLOPS
from dit_shd.profiling.memory import Memory
from dit_shd.tasks import Task

FLOAT32_TFLOPS = {"A100": 19.5, "H100": 67.0}
"""Dense peaks of the SXM cards without TF32, by the maker's data sheets."""


@dataclass(frozen=True)
class EstimateConfig:
    """What dry_run assumes."""

    mfu: float = option(0.3, "share of the peak that is reached: an assumption, not a measurement")
    samples: int = option(50_000, "images sampled for one evaluation")
    sampling_steps: int = option(250, "steps of the sampler; guided: two forwards each")
    teacher: Plugin | dict[str, Plugin] | None = option(
        None, "the teacher while its file is not there yet: {name: mdt, size: B/2}; of several, by name"
    )
    measure: bool = option(True, "also take one real step, at batch 1 and random weights")


@dataclass(frozen=True)
class Measurement:
    """A real step on this machine."""

    device: str
    images: int
    seconds: float
    """Of the second of two steps."""
    peak: int
    """Bytes: of a GPU what was allocated, else what this process's highest resident memory grew by."""


@dataclass(frozen=True)
class DryRun:
    """What a run would take, by count and, where it was tried, by one real step."""

    task: Task[Any]
    student: Any
    teachers: Mapping[str, Any]
    """By what they are called: teacher, or teacher NAME of several."""
    teachers_missing: Sequence[str]
    """Places of those that are not there yet and were counted as estimate.teacher says."""
    operations: Operations
    memory: Memory
    counted: Memory | None
    """As measured: of one image, in float32 on a CPU."""
    measured: Measurement | None
    steps: int
    batch_size: int
    precision: str
    peak_tflops: float | None
    assumed: EstimateConfig
    warning: str | None = None
    """What is to be said of the run as it is configured."""


def peaks(precision: str, own: float | None = None) -> dict[str, float]:
    """GPU -> its peak in TFLOP/s: of `own`, where that is known, else of an A100 and an H100."""
    if own is not None:
        return {f"{own:g} TFLOP/s": own}
    return {gpu: peak if precision == "no" else PEAK_TFLOPS[gpu] for gpu, peak in FLOAT32_TFLOPS.items()}


def hours(operations: float, peak_tflops: float, mfu: float) -> float:
    """GPU-hours that some operations take."""
    return operations / (peak_tflops * 1e12 * mfu) / 3600
