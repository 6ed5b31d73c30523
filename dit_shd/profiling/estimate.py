"""Operations converted to GPU-hours, under stated assumptions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from dit_shd.core.config import option
from dit_shd.core.plugins import Plugin
from dit_shd.profiling.flops import Operations, run_operations
from dit_shd.profiling.hardware import FLOAT32_TFLOPS, PEAK_TFLOPS
from dit_shd.profiling.memory import Memory
from dit_shd.tasks import Task

GPUS = ("A100", "H100")
"""The cards that hours are estimated for."""
PROCESSES = 8
"""The number of processes whose memory is counted beside that of one."""


@dataclass(frozen=True)
class EstimateConfig:
    """The assumptions of dry_run."""

    mfu: float = option(0.3, "share of the peak that is reached: an assumption, not a measurement", range=(1e-4, 1))
    samples: int = option(50_000, "images sampled for one evaluation", range=(1, 1e12))
    sampling_steps: int | None = option(
        None, "steps of the sampler; empty: 250, or of text to image the default of the pipeline's call", range=(1, 1e6)
    )
    teacher: Plugin | dict[str, Plugin] | None = option(
        None, "the teacher, while it is not here: {name: mdt, size: B/2}; of several, by name"
    )
    measure: bool = option(True, "also take one real step, at batch 1 and random weights")


@dataclass(frozen=True)
class MeasuredStep:
    """A real step on this machine."""

    device: str
    images: int
    seconds: float
    """Of the second of two steps."""
    peak: int
    """Bytes: the most that was allocated on a GPU, else the growth of this process's peak resident memory."""


@dataclass(frozen=True)
class DryRun:
    """The cost of a run, by count and, if measured, by one real step."""

    task: Task[Any]
    student: nn.Module
    teachers: Mapping[str, nn.Module]
    """By name: teacher, or teacher NAME of several."""
    teachers_missing: Sequence[str]
    """Places of teachers that do not exist yet and were counted as configured in estimate.teacher."""
    operations_by_step: Mapping[int, Operations]
    """From each step on at which they change: 0, and where losses end."""
    memory: Memory
    memory_of_several: Memory
    """What each of PROCESSES would hold by itself, which share the batch."""
    counted: Memory | None
    """By count under the conditions of the measurement: one image, in float32 on a CPU."""
    measured: MeasuredStep | None
    steps: int
    batch_size: int
    precision: str
    peak_tflops: float | None
    assumed: EstimateConfig
    warning: str | None = None
    """A warning about the configuration."""
    sizes: Sequence[str] = ()
    """Where the student's sizes are from that its config leaves to the data, in words."""
    beginning: Sequence[str] = ()
    """What the student begins with of its teacher's weights, in words, where that is known before a run."""
    fsdp2_refusal: str | None = None
    """Why the run cannot be divided by FSDP2."""
    learns_guidance: bool = False
    """Whether the student learns the teacher's guided prediction, and so is sampled without guidance."""

    @property
    def operations(self) -> Operations:
        """For one image, in the first step."""
        return self.operations_by_step[0]

    @property
    def all_operations(self) -> float:
        """Of the whole run, with recomputation."""
        return run_operations(self.operations_by_step, self.steps) * self.batch_size


def peaks(precision: str, peak_tflops: float | None = None) -> dict[str, float]:
    """GPU -> its peak in TFLOP/s: `peak_tflops` if given, else those of an A100 and an H100."""
    if peak_tflops is not None:
        return {f"{peak_tflops:g} TFLOP/s": peak_tflops}
    return {gpu: (FLOAT32_TFLOPS if precision == "no" else PEAK_TFLOPS)[gpu] for gpu in GPUS}


def hours(operations: float, peak_tflops: float, mfu: float) -> float:
    """GPU-hours of operations at a share (MFU) of a peak."""
    return operations / (peak_tflops * 1e12 * mfu) / 3600
