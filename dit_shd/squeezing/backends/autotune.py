"""The fastest backend: on a GPU measured on the first layer of each kind, on a CPU known."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import torch

from dit_shd.attention.capture import Capture
from dit_shd.attention.kernels import captures
from dit_shd.core.clock import finished
from dit_shd.core.errors import error_line
from dit_shd.squeezing.backends import fused, streamed, triton
from dit_shd.squeezing.backends.job import Job, Result

Backend = Literal["auto", "streamed", "fused", "triton"]
RUNS: dict[str, Callable[[Job], Result]] = {"triton": triton.run, "fused": fused.run, "streamed": streamed.run}
RUNS_AT_MOST, SLOW = 5, 0.5
"""Of a trial: its runs, and the seconds of one that is not run again."""
_chosen: dict[tuple[object, ...], str] = {}
_log = logging.getLogger("dit_shd")


def unfit(backend: str, teacher: Capture, student: Capture, measure: str, bias_needs_grad: bool) -> str | None:
    """Why a backend does not support a layer; None if it does."""
    if backend == "fused":
        return fused.unfit(teacher, student, measure)
    if backend == "triton":
        return captures.unfit(teacher, student) or captures.unrepeatable(student.bias, bias_needs_grad)
    return None


def choose(job: Job) -> str:
    """The backend of a layer.

    On a CPU it is streamed, the fastest there at every size that was tried (benchmarks/README.md): no stopwatch decides
    how a run is rounded.
    """
    return "streamed" if job.teacher.query.device.type == "cpu" else timed(job)


def timed(job: Job) -> str:
    """The only backend that supports a layer, or the fastest in a trial on it."""
    teacher, student = job.teacher, job.student
    kind = (
        *(rounded(teacher.query.shape), rounded(teacher.key.shape), teacher.causal, type(teacher.bias)),
        *(rounded(student.query.shape), rounded(student.key.shape), student.causal),
        *(student.query.dtype, str(student.query.device)),
        *(job.squeeze.heads, job.squeeze.weight.ndim, job.measure, bool(job.squeeze.maps)),
    )
    reasons = {name: unfit(name, teacher, student, job.measure, job.bias_needs_grad) for name in RUNS}
    trial = replace(job, gradients=True)
    runs = {name: partial(RUNS[name], trial) for name, reason in reasons.items() if reason is None}
    return fastest(
        kind, f"attention_kl at (b, h, n, m) = {teacher.shape}", runs, teacher.query.device, reasons["triton"]
    )


def rounded(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape (b, h, n, d) with b and n up to a power of two.

    Batches of texts or buckets of images have ever other lengths; each of them would have a trial of its own.
    """
    b, h, n, d = shape
    return 1 << (b - 1).bit_length(), h, 1 << (n - 1).bit_length(), d


def fastest(
    kind: tuple[object, ...],
    what: str,
    runs: Mapping[str, Callable[[], object]],
    device: torch.device,
    not_triton: str | None = None,
) -> str:
    """The backend of a kind of layer: the only one, or the fastest in a trial; triton is left out where it fails.

    Args:
        kind: What the choice is remembered by, beside the names of the backends.
        what: What is chosen for, in the log.
        runs: What to time, by the backend's name.
        device: The device of the layer.
        not_triton: Why triton is not among them, for the log.
    """
    kind = (*kind, *runs)  # a backend that cannot serve this layer may have been the fastest of another
    if kind in _chosen:
        return _chosen[kind]
    seconds: dict[str, float] = {}
    if len(runs) == 1:
        (_chosen[kind],) = runs
    else:
        for name, run in runs.items():
            try:
                seconds[name] = _seconds(run, device)
            except Exception as error:  # a compiler fails in many ways
                if name != "triton":
                    raise
                not_triton = error_line(error)
        _chosen[kind] = min(seconds, key=lambda name: seconds[name])
    notes = [f"{name} {1e3 * s:.1f} ms" for name, s in seconds.items()]
    notes += [f"not triton: {not_triton}"] if not_triton else []
    if notes:
        _log.info("%s: backend %s (%s)", what, _chosen[kind], ", ".join(notes))
    return _chosen[kind]


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    """The shortest of five runs, of two if they are slow. The first one compiles; the second may launch more."""
    seconds: list[float] = []
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        while len(seconds) < 2 or (len(seconds) < RUNS_AT_MOST and seconds[-1] < SLOW):
            start = finished(device)
            run()
            seconds.append(finished(device) - start)
    return min(seconds)
